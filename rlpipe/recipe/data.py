"""Where prompts and records come from."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rlpipe.recipe.base import FolderName, PathOrHubId, Strict


class ArithmeticData(Strict):
    """Synthetic sums, generated from a seed; held-out problems never appear in training."""

    kind: Literal["arithmetic"]
    """Sums made on the spot."""
    operands: Annotated[int, Field(ge=2, le=4)] = 2
    """How many numbers are added."""
    smallest: NonNegativeInt = 0
    """Smallest operand. Operands of one length (10 to 99) are far easier to learn than of several (0 to 99)."""
    largest: PositiveInt = 99
    """Largest operand; operands are drawn from smallest..largest."""
    heldout: PositiveInt = 512
    """Number of held-out problems."""
    forgotten_carries: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training demonstrations that forget every carry (58+67=115), as a careless teacher would. Rewards
    and held-out answers are always right."""
    calls: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training demonstrations that leave the sum to the calculator (`environment.kind=calculator`)."""
    seed: int = 0
    """Decides which problems exist, which are held out, which demonstrations forget, and which call."""

    @model_validator(mode="after")
    def _in_order(self) -> "ArithmeticData":
        if self.smallest > self.largest:
            raise ValueError(f"smallest={self.smallest} is above largest={self.largest}; change one of them")
        return self


class GuessNumberData(Strict):
    """Secret numbers for `environment.kind=guess_number`, with games of a timid player."""

    kind: Literal["guess_number"]
    """Secret numbers made on the spot."""
    smallest: NonNegativeInt = 0
    """Smallest number."""
    largest: PositiveInt = 31
    """Largest number; the prompt names both."""
    games: PositiveInt = 4096
    """Number of training prompts."""
    heldout: PositiveInt = 256
    """Number of held-out prompts, whose numbers are spread evenly."""
    max_turns: PositiveInt = 6
    """Guesses of a demonstrated game at most."""
    creeping: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the demonstrated guesses that only go on by one (4, higher, 5), as a timid player would; the others are
    any number that is still possible."""
    seed: int = 0
    """Decides the numbers and the games."""

    @model_validator(mode="after")
    def _in_order(self) -> "GuessNumberData":
        if self.smallest >= self.largest:
            raise ValueError(f"smallest={self.smallest} leaves nothing to guess below largest={self.largest}; lower it")
        return self


RecordFormat = Literal["auto", "trl", "alpaca", "sharegpt", "hh"]


class HeldOut(Strict):
    """Records kept for evaluation: another file or split, or the first `count` records of the data."""

    path: PathOrHubId | None = None
    """File, folder or hub id of the held-out records; the same as data.path if absent."""
    split: str | None = None
    """Split of the held-out records; if neither path nor split is given, `count` records leave the training data."""
    count: PositiveInt = 256
    """At most this many held-out records are used."""


class RecordsData(Strict):
    """Records in TRL's formats from a local JSONL / CSV / Parquet / text file, a folder, or the hub."""

    kind: Literal["records"]
    """Records read from files or the hub."""
    path: PathOrHubId
    """Local file or folder, or hub id."""
    config: str | None = None
    """Configuration name of a hub data set (for example `main`)."""
    data_dir: str | None = None
    """Folder inside the data set, for example `harmless-base` of Anthropic/hh-rlhf; a single file has none."""
    split: str = "train"
    """Split to train on."""
    format: RecordFormat = "auto"
    """How a record is written: `trl` has TRL's fields, the others are made into them; `auto` sees `alpaca` and
    `sharegpt` by their fields."""
    columns: dict[str, str] = {}
    """Renames: standard name -> the file's own column, for example `{prompt: question, completion: answer}`."""
    chat: bool = True
    """Render prompts and completions through the tokenizer's chat template; false trains on the plain text."""
    system: str | None = None
    """System message put before every prompt (chat only)."""
    add_eos: bool = True
    """Put the end-of-sequence token after plain text (chat=false); false for texts that were cut off at a limit."""
    skip_unusable: bool = False
    """Leave records that cannot be used out, with a warning that counts them; otherwise the first one is an error."""
    heldout: HeldOut = HeldOut()
    """Which records are kept for evaluation."""


Data = Annotated[ArithmeticData | GuessNumberData | RecordsData, Field(discriminator="kind")]


class MixtureData(Strict):
    """Several sources mixed by weights, for example new material with old, so that the old is not forgotten."""

    kind: Literal["mixture"]
    """Several sources."""
    sources: Annotated[dict[FolderName, Data], Field(min_length=2)]
    """Data by name. The first source is what is to be learned: its held-out records give heldout_loss and the prompts
    of evaluations; source X of the others has heldout_loss/X."""
    weights: dict[FolderName, PositiveFloat]
    """Share of each source among the training records, in any unit. The smaller of two sources is repeated until the
    larger has been seen whole."""

    @model_validator(mode="after")
    def _each_has_a_weight(self) -> "MixtureData":
        odd = sorted(self.sources.keys() ^ self.weights.keys())
        if odd:
            known = "no source" if odd[0] in self.weights else "no weight"
            raise ValueError(f"`{odd[0]}` has {known}; sources and weights must hold the same names")
        return self


PreferenceData = Annotated[ArithmeticData | RecordsData, Field(discriminator="kind")]
"""Data with better and worse responses."""


class ComparisonsData(Strict):
    """What a judge learns from: which of two responses is better, asked as a judge is asked."""

    kind: Literal["comparisons"]
    """Questions made of preferences."""
    pairs: PreferenceData
    """Preferences; with `kind: arithmetic`, pairs of the right sum and a likely wrong one."""
    template: PathOrHubId = "compare"
    """What is asked, as in a `judge` reward: its options are the completions. Each pair is asked in both orders."""


SftData = Annotated[
    ArithmeticData | GuessNumberData | RecordsData | MixtureData | ComparisonsData,
    Field(discriminator="kind"),
]
