"""Request and reply models."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dptdr.search.hybrid import Fusion

SideName = Literal["query", "passage", "document", "search_query", "search_document"]

MAX_ITEMS = 100_000
"""No list in a body may be longer, whatever the server's own limits are."""

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
FolderName = Annotated[
    str,
    Field(
        description="Name of a folder inside the server's tasks folder.",
        min_length=1,
        max_length=200,
    ),
]

VersionName = Annotated[str, Field(min_length=1, max_length=64)]
Dimensions = Annotated[
    int | None,
    Field(
        ge=1,
        strict=True,
        description="Shorter vectors, where the task was trained for that length.",
    ),
]
Direction = Annotated[
    Literal["Right", "right", "Left", "left"],
    Field(description="Which end of a long text is cut off."),
]
PromptName = Annotated[
    SideName | None,
    Field(description="Which side the texts are; needed where a task's two sides differ."),
]

Texts = str | list[str] | list[int] | list[list[int]]


def _printable(text: str) -> str:
    """Return a text with lone surrogates replaced, which no reply could hold."""
    return text.encode("utf-8", "replace").decode()


def _read_texts(value: Any) -> Texts:
    """Check a text, texts, token ids or lists of them, up to the first fault."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("texts", "expected a text, or a list with at least 1 item")
    if len(value) > MAX_ITEMS:
        raise PydanticCustomError("texts", f"expected at most {MAX_ITEMS:,} items")
    kind = type(value[0])
    if kind not in (str, int, list) or any(type(item) is not kind for item in value):
        raise PydanticCustomError("texts", "expected texts, token ids, or lists of token ids")
    if kind is list:
        for row in value:
            if not 0 < len(row) <= MAX_ITEMS or any(type(item) is not int for item in row):
                raise PydanticCustomError(
                    "texts", "expected lists of token ids, none of them empty"
                )
    texts: Texts = value
    return texts


_STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
TextsField = Annotated[
    Texts,
    PlainValidator(_read_texts),
    WithJsonSchema(
        {
            "description": "A text, texts, token ids, or lists of token ids.",
            "anyOf": [
                {"type": "string", "examples": ["how do I cross the river?"]},
                _STRINGS,
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1},
            ],
        }
    ),
]


class Request(BaseModel):
    """Base of all request bodies; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, value: Any) -> Any:
        # One error for the first unknown field, not one for each of a million.
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_field",
                        "unknown field '{name}', expected some of {known}",
                        {"name": _printable(str(name)[:60]), "known": ", ".join(cls.model_fields)},
                    )
        return value


class EmbeddingsRequest(Request):
    """OpenAI's embeddings request; ``model`` is the task, with ``:query`` or ``:passage``."""

    model: Annotated[
        str | None,
        Field(
            description="'task' or 'task@version', with ':query' or ':passage' where they differ; "
            "may be left out where there is one task.",
            examples=["backbone:query", "medical:passage"],
            min_length=1,
            max_length=200,
        ),
    ] = None
    input: TextsField
    input_type: PromptName = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions = None
    user: Annotated[str | None, Field(description="Not used.")] = None


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Token counts of a request."""

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

    inputs: TextsField
    normalize: Annotated[StrictBool, Field(description="Scale vectors to length 1.")] = True
    truncate: Annotated[
        StrictBool, Field(description="Whether texts beyond the task's limit may be cut.")
    ] = True
    truncation_direction: Direction = "Right"
    prompt_name: PromptName = None
    dimensions: Dimensions = None
    task: TaskName | None = None


class SimilarityInputs(Request):
    """A text and the texts to compare it with."""

    source_sentence: Text
    sentences: Annotated[list[Text], Field(min_length=1, max_length=MAX_ITEMS)]


class SimilarityParameters(Request):
    """Truncation and side of texts."""

    truncate: StrictBool = True
    truncation_direction: Direction = "Right"
    prompt_name: PromptName = None


class SimilarityRequest(Request):
    """The similarity request of text-embeddings-inference."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None
    task: TaskName | None = None


class TokenizeRequest(Request):
    """The tokenize request of text-embeddings-inference."""

    inputs: Annotated[Text | list[Text], Field(description="Texts.")]
    add_special_tokens: StrictBool = True
    prompt_name: PromptName = None
    task: TaskName | None = None


class Token(BaseModel):
    """One token of a text."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class RerankRequest(Request):
    """The rerank request of text-embeddings-inference."""

    query: Text
    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_ITEMS)]
    raw_scores: Annotated[
        StrictBool, Field(description="Logits instead of numbers from 0 to 1.")
    ] = False
    return_text: StrictBool = False
    truncate: Annotated[Literal[True], Field(description="Long texts are always cut.")] = True
    truncation_direction: Literal["Right", "right"] = "Right"


class Ranked(BaseModel):
    """The index of a text in the request, and its score."""

    index: int
    score: float
    text: str | None = None


class SearchRequest(Request):
    """A search in the index of a task."""

    task: TaskName
    text: Text
    k: Annotated[int, Field(ge=1, strict=True, description="Maximum hits.")] = 10
    mode: Annotated[
        Literal["dense", "hybrid"] | None,
        Field(description="Vectors alone (default), or merged with the index's BM25."),
    ] = None
    fusion: Annotated[
        Fusion | None,
        Field(description="How BM25 is merged in: by ranks (default) or scaled scores."),
    ] = None
    filters: Annotated[
        list[Annotated[str, Field(pattern=r"^\s*[^=\s][^=]*=", max_length=1000)]],
        Field(description="Conditions on metadata: 'field=value' or 'field=a,b'.", max_length=20),
    ] = []


class Hit(BaseModel):
    """A hit."""

    rank: int
    id: str
    score: float
    title: str
    text: str


class SearchReply(BaseModel):
    """Hits, best first, and timings."""

    task: str
    index: str
    mode: Literal["dense", "hybrid"]
    hits: list[Hit]
    encode_milliseconds: float
    search_milliseconds: float


class NewVersion(Request):
    """A bundle in the tasks folder to add as a version."""

    bundle: FolderName
    version: Annotated[
        str | None, Field(description="Name of the version; the next number by default.")
    ] = None
    default: Annotated[
        StrictBool, Field(description="Whether the bare task name means this version from now on.")
    ] = True
    index: Annotated[
        FolderName | None, Field(description="Index inside the tasks folder that it searches.")
    ] = None


class NewIndex(Request):
    """An index in the tasks folder for a version of a task."""

    task: Annotated[str, Field(min_length=1, max_length=100)]
    index: FolderName
    version: Annotated[VersionName | None, Field(description="The default version by default.")] = (
        None
    )


class NewTask(NewVersion):
    """A bundle in the tasks folder to add as a task."""

    task: Annotated[str, Field(description="The task's name.", min_length=1, max_length=100)]


class DefaultVersion(Request):
    """The new default version."""

    version: VersionName


class VersionInfo(BaseModel):
    """One version of a task."""

    version: str
    default: bool
    added: str
    index: str | None
    method: str
    prompt_length: int
    sharing: str
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
    """All tasks that the key covers."""

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
    """Whether the server is ready."""

    status: Literal["ok", "starting", "draining"]


class Info(BaseModel):
    """Description of the server."""

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
    bare_searchable: Annotated[bool, Field(description="Whether an index fits the bare encoder.")]
    hybrid: Annotated[bool, Field(description="Whether an index has BM25.")]
    rerank: Annotated[bool, Field(description="Whether there is a cross-encoder.")]
    keys: Annotated[bool, Field(description="Whether an API key is needed.")]
    version: str


class SelfCheck(BaseModel):
    """Result of a self-check."""

    rows: int
    tasks: int
    difference: float
    passed: bool


class Error(BaseModel):
    """An error."""

    type: str
    message: str
    request_id: str


class ErrorReply(BaseModel):
    """The shape of every error."""

    error: Error
