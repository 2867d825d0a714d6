"""What requests and replies look like; the source of the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SideName = Literal["query", "passage"]

Text = Annotated[str, Field(description="A text.", examples=["how do I cross the river?"])]
TaskName = Annotated[
    str,
    Field(
        description="A task, 'task@version', or 'backbone' for the bare encoder.",
        examples=["backbone", "medical@2"],
        min_length=1,
        max_length=200,
    ),
]


class Request(BaseModel):
    """Base of all request bodies: unknown fields are an error, not a silent nothing."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=False)


class EmbeddingsRequest(BaseModel):
    """OpenAI's embeddings request; ``model`` is the task, with ``:query`` or ``:passage``."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Annotated[
        str,
        Field(
            description="'task', 'task@version', with ':query' (the default) or ':passage'.",
            examples=["backbone:query", "medical:passage"],
            min_length=1,
            max_length=200,
        ),
    ]
    input: Annotated[Text | Annotated[list[Text], Field(min_length=1)], Field(description="Texts.")]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[
        int | None,
        Field(ge=1, description="Shorter vectors, where the task was trained for that length."),
    ] = None
    user: Annotated[str | None, Field(description="Not used.")] = None


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """What a request cost."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: Annotated[str, Field(description="The version that answered: 'task@version'.")]
    usage: Usage


class EmbedRequest(Request):
    """The embed request of text-embeddings-inference."""

    inputs: Annotated[
        Text | Annotated[list[Text], Field(min_length=1)], Field(description="Texts.")
    ]
    normalize: Annotated[bool, Field(description="Scale vectors to length 1.")] = True
    truncate: Annotated[
        bool, Field(description="Whether texts beyond the task's limit may be cut.")
    ] = True
    truncation_direction: Literal["Right", "right"] = "Right"
    prompt_name: Annotated[
        SideName | None, Field(description="Which side the texts are; 'query' by default.")
    ] = None
    dimensions: Annotated[int | None, Field(ge=1)] = None
    task: TaskName | None = None


class SearchRequest(Request):
    """A search in the index of a task."""

    task: TaskName
    text: Text
    k: Annotated[int, Field(ge=1, description="Most hits.")] = 10
    mode: Annotated[
        Literal["dense", "hybrid"], Field(description="Vectors alone, or fused with BM25.")
    ] = "dense"
    filters: Annotated[
        list[Annotated[str, Field(pattern=r"^\s*[^=\s][^=]*=", max_length=1000)]],
        Field(description="Conditions on metadata: 'field=value' or 'field=a,b'.", max_length=20),
    ] = []


class Hit(BaseModel):
    """A passage that was found."""

    rank: int
    id: str
    score: float
    title: str
    text: str


class SearchReply(BaseModel):
    """Hits, best first, and where the time went."""

    task: str
    index: str
    mode: Literal["dense", "hybrid"]
    hits: list[Hit]
    encode_milliseconds: float
    search_milliseconds: float


class NewVersion(Request):
    """A bundle inside the tasks folder that becomes a version of a task."""

    bundle: Annotated[
        str,
        Field(
            description="Name of a bundle inside the server's tasks folder.",
            min_length=1,
            max_length=200,
        ),
    ]
    version: Annotated[
        str | None, Field(description="Name of the version; the next number by default.")
    ] = None
    default: Annotated[
        bool, Field(description="Whether the bare task name means this version from now on.")
    ] = True


class NewTask(NewVersion):
    """A bundle inside the tasks folder that becomes a task."""

    task: Annotated[str, Field(description="The task's name.", min_length=1, max_length=100)]


class DefaultVersion(Request):
    """Which version a bare task name shall mean."""

    version: Annotated[str, Field(min_length=1, max_length=64)]


class VersionInfo(BaseModel):
    """One version of a task."""

    version: str
    default: bool
    added: str
    method: str
    prompt_length: int
    sharing: str
    attention: str
    trained_parameters: int
    query_fingerprint: str
    passage_fingerprint: str
    max_query_tokens: int
    max_passage_tokens: int
    measures: dict[str, Any]


class TaskInfo(BaseModel):
    """A task with its versions."""

    task: str
    default: str
    history: list[str]
    searchable: bool
    versions: list[VersionInfo]


class TaskList(BaseModel):
    """All tasks that the key reaches."""

    tasks: list[TaskInfo]
    broken: Annotated[dict[str, str], Field(description="Versions whose copy is damaged, and how.")]


class Model(BaseModel):
    """A task as OpenAI lists models."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All tasks as OpenAI lists models."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """Whether texts are encoded."""

    status: Literal["ok", "starting", "draining"]


class Info(BaseModel):
    """What this server is."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str
    model_dtype: str
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    max_request_tokens: int
    max_concurrent_tokens: int
    dim: int
    layout: str
    tasks: int
    indexes: list[str]
    hybrid: bool
    keys: Annotated[bool, Field(description="Whether an API key is needed.")]
    version: str


class SelfCheck(BaseModel):
    """Mixed vectors against those of single rows."""

    rows: int
    tasks: int
    difference: float
    passed: bool


class Problem(BaseModel):
    """What went wrong."""

    type: str
    message: str
    request_id: str


class ProblemReply(BaseModel):
    """The shape of every error."""

    error: Problem
