import pytest
import torch


@pytest.fixture
def one_thread():
    """Sums over several threads are rounded in another order than the processes' own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
