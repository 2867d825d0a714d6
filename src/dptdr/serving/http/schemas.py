"""Request and response models."""

import json
from typing import Annotated, Any, Literal

import fastapi
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

from dptdr.io.jsonkeys import RepeatedKey, unique_keys
from dptdr.search.hybrid import Fusion

SideName = Literal["query", "passage", "document", "search_query", "search_document"]

MAX_ITEMS = 100_000
"""Absolute limit on the length of any list in a body."""

Text = Annotated[str, Field(description="A text.", examples=["how do I cross the river?"])]
TaskName = Annotated[
    str,
    Field(
        description="Task, 'task@version', or 'backbone' for the bare encoder.",
        examples=["backbone", "medical@2"],
        min_length=1,
        max_length=200,
    ),
]
FolderName = Annotated[
    str,
    Field(
        description="Name of a folder in the server's tasks folder.",
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
        description="Output dimension, if the task supports shorter vectors.",
    ),
]
Direction = Annotated[
    Literal["Right", "right", "Left", "left"],
    Field(description="Which end of a long text to truncate."),
]
PromptName = Annotated[
    SideName | None,
    Field(description="Side of the texts; required if the task's sides differ."),
]

Texts = str | list[str] | list[int] | list[list[int]]


def _printable(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded in a response."""
    return text.encode("utf-8", "replace").decode()


def _read_texts(value: Any) -> Texts:
    """Validate a text, texts, token ids or lists of token ids, up to the first error."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("texts", "expected a text or a non-empty list")
    if len(value) > MAX_ITEMS:
        raise PydanticCustomError("texts", f"expected at most {MAX_ITEMS:,} items")
    kind = type(value[0])
    if kind not in (str, int, list) or any(type(item) is not kind for item in value):
        raise PydanticCustomError("texts", "expected texts, token ids, or lists of token ids")
    if kind is list:
        for row in value:
            if not 0 < len(row) <= MAX_ITEMS or any(type(item) is not int for item in row):
                raise PydanticCustomError("texts", "expected non-empty lists of token ids")
    texts: Texts = value
    return texts


_STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
TextsField = Annotated[
    Texts,
    PlainValidator(_read_texts),
    WithJsonSchema(
        {
            "description": "Text, texts, token ids, or lists of token ids.",
            "anyOf": [
                {"type": "string", "examples": ["how do I cross the river?"]},
                _STRINGS,
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1},
            ],
        }
    ),
]


class JsonRequest(fastapi.Request):
    """A request whose JSON body must be UTF-8, with each key once."""

    async def json(self) -> Any:
        """Parse the body."""
        body = await self.body()
        try:
            # RFC 8259 allows parsers to ignore a byte order mark.
            return json.loads(body.decode("utf-8-sig"), object_pairs_hook=unique_keys)
        except UnicodeDecodeError:
            raise fastapi.HTTPException(400, "expected a JSON body in UTF-8") from None
        except RepeatedKey as error:
            raise fastapi.HTTPException(400, str(error)) from None


class Request(BaseModel):
    """Base of all request bodies; rejects unknown fields."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, value: Any) -> Any:
        # Report only the first unknown field: there may be a million.
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_field",
                        "unknown field '{name}', expected only {known}",
                        {"name": _printable(str(name)[:60]), "known": ", ".join(cls.model_fields)},
                    )
        return value


class EmbeddingsRequest(Request):
    """OpenAI embeddings request; ``model`` is the task, with ``:query`` or ``:passage``."""

    model: Annotated[
        str | None,
        Field(
            description="'task' or 'task@version', with ':query' or ':passage' if they differ; "
            "optional if there is only one task.",
            examples=["backbone:query", "medical:passage"],
            min_length=1,
            max_length=200,
        ),
    ] = None
    input: TextsField
    input_type: PromptName = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions = None
    user: Annotated[str | None, Field(description="Ignored.")] = None


class Embedding(BaseModel):
    """An embedding."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Token counts of a request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """Embeddings in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: Annotated[str, Field(description="Version used, as 'task@version'.")]
    usage: Usage


class EmbedRequest(Request):
    """Embed request of text-embeddings-inference."""

    inputs: TextsField
    normalize: Annotated[StrictBool, Field(description="Normalise vectors to unit length.")] = True
    truncate: Annotated[
        StrictBool, Field(description="Truncate texts that exceed the task's limit.")
    ] = True
    truncation_direction: Direction = "Right"
    prompt_name: PromptName = None
    dimensions: Dimensions = None
    task: TaskName | None = None


class SimilarityInputs(Request):
    """A source text and the texts to compare it with."""

    source_sentence: Text
    sentences: Annotated[list[Text], Field(min_length=1, max_length=MAX_ITEMS)]


class SimilarityParameters(Request):
    """Truncation and side of the texts."""

    truncate: StrictBool = True
    truncation_direction: Direction = "Right"
    prompt_name: PromptName = None


class SimilarityRequest(Request):
    """Similarity request of text-embeddings-inference."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None
    task: TaskName | None = None


class TokenizeRequest(Request):
    """Tokenize request of text-embeddings-inference."""

    inputs: Annotated[Text | list[Text], Field(description="Texts.")]
    add_special_tokens: StrictBool = True
    prompt_name: PromptName = None
    task: TaskName | None = None


class Token(BaseModel):
    """A token of a text."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class RerankRequest(Request):
    """Rerank request of text-embeddings-inference."""

    query: Text
    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_ITEMS)]
    raw_scores: Annotated[
        StrictBool, Field(description="Return logits instead of scores from 0 to 1.")
    ] = False
    return_text: StrictBool = False
    truncate: Annotated[
        Literal[True], Field(description="Always true: long texts are truncated.")
    ] = True
    truncation_direction: Literal["Right", "right"] = "Right"


class Ranked(BaseModel):
    """Index of a text in the request, and its score."""

    index: int
    score: float
    text: str | None = None


class SearchRequest(Request):
    """Search request for a task's index."""

    task: TaskName
    text: Text
    k: Annotated[int, Field(ge=1, strict=True, description="Maximum hits.")] = 10
    mode: Annotated[
        Literal["dense", "hybrid"] | None,
        Field(description="Dense only (default), or fused with the index's BM25."),
    ] = None
    fusion: Annotated[
        Fusion | None,
        Field(description="Fusion method: by ranks (default) or normalised scores."),
    ] = None
    filters: Annotated[
        list[Annotated[str, Field(pattern=r"^\s*[^=\s][^=]*=", max_length=1000)]],
        Field(
            description="Metadata filters: 'field=value' or 'field=a,b', with a backslash before a "
            "comma that is part of a value.",
            max_length=20,
        ),
    ] = []


class SearchHit(BaseModel):
    """A search hit."""

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
    hits: list[SearchHit]
    encode_milliseconds: float
    search_milliseconds: float


class NewVersion(Request):
    """Request to add a bundle from the tasks folder as a version."""

    bundle: FolderName
    version: Annotated[
        str | None, Field(description="Version name; the next number by default.")
    ] = None
    default: Annotated[StrictBool, Field(description="Make this the task's default version.")] = (
        True
    )
    index: Annotated[
        FolderName | None, Field(description="Folder of its index in the tasks folder.")
    ] = None


class NewIndex(Request):
    """Request to set the index of a task version, from the tasks folder."""

    task: Annotated[str, Field(min_length=1, max_length=100)]
    index: FolderName
    version: Annotated[VersionName | None, Field(description="The default version by default.")] = (
        None
    )


class NewTask(NewVersion):
    """Request to add a bundle from the tasks folder as a task."""

    task: Annotated[str, Field(description="Task name.", min_length=1, max_length=100)]


class DefaultVersion(Request):
    """The new default version."""

    version: VersionName


class VersionInfo(BaseModel):
    """A version of a task."""

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
    """A task and its versions."""

    task: str
    default: str
    history: list[str]
    searchable: bool
    versions: list[VersionInfo]


class TaskList(BaseModel):
    """All tasks covered by the key."""

    tasks: list[TaskInfo]
    broken: Annotated[dict[str, str], Field(description="Damaged versions and their errors.")]


class Model(BaseModel):
    """A task in the format of an OpenAI model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All tasks in the format of OpenAI's model list."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """Readiness of the server."""

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
    bare_searchable: Annotated[
        bool, Field(description="Whether an index matches the bare encoder.")
    ]
    hybrid: Annotated[bool, Field(description="Whether an index has BM25.")]
    rerank: Annotated[bool, Field(description="Whether a cross-encoder is loaded.")]
    keys: Annotated[bool, Field(description="Whether an API key is required.")]
    version: str


class SelfCheck(BaseModel):
    """Result of a self-check."""

    rows: int
    tasks: int
    difference: float
    passed: bool


class Error(BaseModel):
    """Details of an error."""

    type: str
    message: str
    request_id: str


class ErrorReply(BaseModel):
    """Body of every error response."""

    error: Error
