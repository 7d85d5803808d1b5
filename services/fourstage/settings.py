"""Every setting, typed, with its default, its unit and what it is for.

One model holds the sections of all processes: each process reads the section with its name, the trainer also
the top level. ``resolve`` says where values come from.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fourstage.presets import with_preset

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(ge=0.0, le=86_400.0)]
Rate = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]


class Section(BaseModel):
    """A group of settings: unknown names are errors, values never change after they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


class ModelSettings(Section):
    """The network. Its ablations are one setting each."""

    name: Literal["alexnet", "cifar", "none"] = "alexnet"
    """``alexnet``: five convolutional and three dense layers in two columns; ``cifar``: the four-layer net of
    the paper's figure 1; ``none``: batches are consumed without training."""

    activation: Literal["relu", "tanh", "abs-tanh"] = "relu"
    """The nonlinearity after every hidden layer; ``abs-tanh`` is the absolute value of the tangent (paper, section
    3.1)."""

    response_norm: bool = True
    """Local response normalisation (paper, section 3.3) after the first two layers."""

    norm_scale: Literal["sum", "mean"] = "sum"
    """What the response norm multiplies by its alpha: the sum of the squares, as the paper writes it, or their mean
    over the window, as the 2012 code did."""

    overlapping_pooling: bool = True
    """Pooling windows of 3x3, 2 apart (paper, section 3.4); without it of 2x2, which touch."""

    dropout: Fraction | None = None
    """Share of the units of fc6 and fc7 that is zeroed in training (paper, section 4.2); unset, AlexNet's 0.5."""

    init_std: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    """Standard deviation of the initial weights; unset, the model's own (AlexNet 0.01, paper section 5)."""

    middle_std: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    """That of AlexNet's conv3, conv4 and conv5 (0.03 in the 2012 code); unset, as the other layers'."""

    columns: Literal[1, 2] = 2
    """Of AlexNet. 1 is the paper's net for one GPU (section 3.2): conv1 to conv4 have half of the kernels; conv5
    and the dense layers keep theirs."""

    conv1_order: Literal["activation-norm-pool", "norm-pool-activation"] = "activation-norm-pool"
    """What follows AlexNet's conv1, in this order: the paper's or the 2012 code's."""

    map_norm: bool = False
    """After the response norm of AlexNet's conv2 a second one within each map, over windows of 5x5 (2012 code)."""

    sixth_layer: bool = False
    """A sixth convolution over AlexNet's last pooling layer (paper, section 6), of 256 kernels of 3x3 that read both
    columns. The paper does not give its size: this is the project's."""

    without: tuple[Literal["conv3", "conv4", "conv5", "fc6", "fc7"], ...] = ()
    """AlexNet's layers that are left out (paper, sections 1 and 7); the next one reads what is there."""


class TrainSettings(Section):
    """Training: rule, schedule, device."""

    learning_rate: Rate = 0.01
    """The rate of the first epoch (paper, section 5)."""

    bias_rate: Rate | None = None
    """The rate of the biases, which no schedule lowers; unset, that of the weights."""

    bias_decay: bool = True
    """Whether the biases decay as well."""

    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Share of the velocity that a step keeps."""

    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0005
    """Of the rule's decay term, which is multiplied by the rate."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 90
    """Passes over the training split."""

    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many steps, counted from the run's beginning, also after a resume."""

    schedule: Literal["plateau", "epochs"] = "epochs"
    """``plateau``: the rate is divided by ten when the validation error (without validation: the training error) stops
    improving (paper, section 5); ``epochs``: at ``train.drop_epochs``, and so wherever these are given and this is
    not. AlexNet's comes from the preset."""

    drop_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs, counted from 0, at whose beginning the rate is divided by ten."""

    patience: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Epochs without a lower error that make a plateau."""

    drops: Annotated[int, Field(ge=0, le=100)] = 3
    """Plateaus that lower the rate; at a further one nothing happens, the run ends by ``train.epochs``."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """``auto``: the first GPU where there is one, else the CPU."""

    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of the train stage; fixed, never derived from the number of augmenters, because the order of
    floating-point sums depends on it."""

    deterministic: bool = False
    """On CUDA: only deterministic kernels, equal losses on one kind of GPU."""

    precision: Literal["float32", "float64", "tf32", "bf16"] = "float32"
    """Of the network's arithmetic: ``tf32`` is CUDA's shortened products of float32 numbers; ``bf16`` is autocast
    over float32 weights; ``float64`` is for comparisons."""

    compile: bool = False
    """Let torch.compile fuse the network's kernels; the first step takes a minute longer."""

    copy_seconds: Seconds = 0.0
    """With ``model.name = "none"``: how long a simulated copy to the device takes for a batch."""

    step_seconds: Seconds = 0.0
    """With ``model.name = "none"``: how long the simulated device takes for a step."""

    checkpoint_seconds: Seconds = 600.0
    """A checkpoint is written this often, on interruption, at the end, and at the end of an epoch unless the last one
    is younger than ten seconds."""

    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000)] = 2
    """The newest ones; older are removed."""


class LoaderSettings(Section):
    """Stage 1."""

    address: str = "tcp://127.0.0.1:5555"
    """Where the loader binds for augmenters, and what everybody is told: ``tcp://HOST:PORT``, ``ipc://PATH``, or
    ``file:PATH``, a file that holds the present address and is read again on every reconnect. Beyond this machine only
    with ``keys``."""

    trainers: str = "auto"
    """Where the loader binds for trainers, and these connect: ``auto`` is beside ``loader.address``, the next port or
    ``PATH.trainers``; a file's second line."""

    threads: Annotated[int, Field(ge=1, le=256)] = 4
    """Threads that read from the store (preadv releases the interpreter)."""

    memory: Annotated[int, Field(ge=1 << 10)] = 2 << 30
    """Bytes that the JPEG slots of a trainer's first stream may take, half of it those of its second, a third those of
    its third, and so on; bounds the window."""

    heartbeat_seconds: Annotated[float, Field(ge=0.05, le=60.0)] = 0.5
    """How often every peer says what it holds."""

    silence_seconds: Annotated[float, Field(ge=0.2, le=600.0)] = 5.0
    """A peer that says nothing for this long loses its leases."""

    expect_augmenters: Annotated[int, Field(ge=0, le=1024)] = 0
    """How many augmenters there should be, for an alert where there are fewer; 0: any number."""

    batch_seconds: Seconds = 0.0
    """A simulated disk: it reads one batch at a time, and each takes at least this long."""

    hedge_seconds: Annotated[float, Field(ge=0.01, le=600.0)] = 1.0
    """The batch that training waits for is given to a second worker when its holder has had it this long."""


class AugmenterSettings(Section):
    """Stage 2."""

    crop: Annotated[int, Field(ge=1, le=65_500)] = 224
    """Width and height of the training crop in pixels."""

    decoder: Literal["auto", "simplejpeg", "turbojpeg", "dali"] = "auto"
    """JPEG decoder; ``auto`` is simplejpeg, the faster of two with equal pixels. ``dali`` (extra ``dali``) is NVIDIA's
    on the CPU, about half as fast, for comparison with pipelines that use it; its workers never share a stream with
    others."""

    slots: Annotated[int, Field(ge=1, le=256)] = 2
    """Batches that one augmenter may hold finished or in work per stream, besides one spare for the head."""

    memory: Annotated[int, Field(ge=1 << 10)] = 2 << 30
    """Bytes that the pixel slots of one stream may take in one augmenter."""

    batch_seconds: Seconds = 0.0
    """Simulated work: each batch takes at least this long."""


class MetricsSettings(Section):
    """/metrics and /healthz of each process."""

    host: str = "127.0.0.1"
    """Interface; 0.0.0.0 lets a Prometheus on another host scrape."""

    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """0 takes a free port; it is written to the log and to the run directory. Of several trainers on one machine each
    takes the next."""

    alive_file: str = ""
    """A file that the data loop touches every few seconds while it turns: for health checks without HTTP."""

    watchdog_seconds: Seconds = 0.0
    """A process whose data loop has not turned for this long ends itself, to be started again; 0: never."""


class Settings(Section):
    """Everything resolved: what ``settings.toml`` in a run directory holds."""

    recipe: str = "alexnet"
    """Name or file of the recipe that the values came from."""

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Of order, draws, first weights and dropout."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Images of one step over all ranks."""

    remainder: Literal["keep", "drop"] = "keep"
    """``keep``: the last batch of an epoch is smaller; ``drop``: the samples that fill no batch are left out."""

    window: Literal["auto"] | Annotated[int, Field(ge=1, le=65_536)] = "auto"
    """Batches between the last one trained on and the furthest that may be read."""

    preset: Literal["paper", "code-2012"] = "paper"
    """Whose values stand where nothing is set: those of the paper's words or of the released 2012 code, for draws,
    finish, network, rule and schedule; docs/fidelity.md lists them. Other networks than AlexNet take of the last three
    only ``model.norm_scale``."""

    augment: bool = True
    """Random crop, reflection and colour shift; without it training takes centre crops."""

    colour_std: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1
    """Standard deviation of the colour shift's coefficients (paper, section 4.1); 0 switches it off."""

    colour_scale: Literal["eigenvalues", "deviations"] = "eigenvalues"
    """What multiplies the coefficients: the eigenvalues of the covariance of pixels on 0..1, or their square roots."""

    colour_divide: bool = False
    """Divide the finished pixels by 1 + ``colour_std`` while the shift is on: the scale of what is not shifted."""

    colour_epochs: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    """Epochs, from the first one on, that have a colour shift; unset, all."""

    crop_positions: Literal["exclusive", "inclusive"] = "exclusive"
    """Positions of a crop of C in an image of S along each side: S - C (32 for 224 in 256), or all S - C + 1."""

    crop_chunk: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Consecutive samples of an epoch that share one crop position and one reflection."""

    subtract: Literal["mean-image", "mean-colour"] = "mean-image"
    """What is subtracted from each pixel."""

    mean_place: Literal["crop", "centre"] = "crop"
    """Which part of the mean image: where the crop was cut, reflected as it was, or always the centre as it is."""

    transport: Literal["arena", "inline"] = "arena"
    """``arena``: shared memory where both ends are on one host, frames elsewhere; ``inline``: frames always."""

    decode: Literal["augmenter", "device"] = "augmenter"
    """Who decodes: augmenters, each on a core of a CPU, or the trainer's copy stage on the device that trains: on a GPU
    by nvImageCodec (extra ``dali``; never run on one so far), on a CPU by ``augmenter.decoder``. ``device`` needs no
    augmenters; ``augmenter.slots`` and ``augmenter.memory`` then bound the JPEG bytes that lie in the trainer."""

    receipt: Literal["keys", "pixels"] = "keys"
    """What the digest covers: sequence numbers, keys and draws, or the pixels as well."""

    on_corrupt: Literal["fail", "skip"] = "fail"
    """What a stored image that cannot be decoded does: ``fail`` ends the run with its name; ``skip`` leaves it out of
    its batch, names it in the receipt, and charges the budget below. A run may go on with the other one."""

    corrupt_count: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """With ``on_corrupt = "skip"``: different samples that a run may leave out; one more ends it. A pass over the
    validation split has the three limits for itself."""

    corrupt_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.001
    """The same: share of the samples of one epoch, at least one sample."""

    corrupt_consecutive: Annotated[int, Field(ge=1, le=1_000_000)] = 8
    """The same: samples one behind another in the order of the stream: so many at once are not the images' fault."""

    parallel: Literal["none", "columns", "data"] = "none"
    """How several trainers share a network: ``columns``, each half of the kernels (paper, section 3.2 and figure 2);
    ``data``, each a share of every batch. Results differ by rounding alone."""

    replicas: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Whole networks that share each batch; unset, one with ``columns``, and with ``data`` one per GPU, two without.
    Together with ``columns`` there are twice as many trainers."""

    train_split: str = "train"
    """The split that is trained on."""

    validation_split: str = "val"
    """A store that lacks it trains without validation."""

    validation_batch: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Images of one validation batch; unset, ``batch_size``."""

    receiver: str = "auto"
    """Where augmenters send batches to the trainer: ``auto`` is a Unix socket beside a local loader, else a free
    port on the interface that reaches the loader; or ``tcp://HOST:PORT``."""

    receiver_bind: str = ""
    """Where the trainer itself listens if augmenters reach it at another address than its own (a forwarded port):
    ``tcp://INTERFACE:PORT``; empty: as ``receiver``."""

    keys: str = ""
    """Folder of this process's keys, one of those that ``fourstage keys init`` makes: TCP connections are then
    encrypted, and only peers with a known key come in. Empty: none."""

    sockets: str = ""
    """Directory of the Unix sockets that hand arenas over; empty: a private temporary one."""

    trace: bool = False
    """Write the timeline of every batch through the four stages."""

    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    loader: LoaderSettings = LoaderSettings()
    augmenter: AugmenterSettings = AugmenterSettings()
    metrics: MetricsSettings = MetricsSettings()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        plain = {k: v.model_dump(exclude_unset=True) if isinstance(v, Section) else v for k, v in values.items()}
        return with_preset(plain)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("step_seconds", "copy_seconds"):
            if getattr(self.train, name) > 0.0 and self.model.name != "none":
                raise ValueError(f'train.{name} simulates a device: it needs model.name = "none"')
        if self.decode == "device" and self.parallel == "columns":
            raise ValueError("decode = 'device' with parallel = 'columns': both columns train on batches made once")
        if self.decode == "device" and self.augmenter.batch_seconds > 0.0:
            raise ValueError("augmenter.batch_seconds slows augmenters down: with decode = 'device' there are none")
        if self.on_corrupt == "fail":
            _check_no_budget(self)
        _check_model(self.model)
        if self.parallel == "columns" and (self.model.name == "cifar" or self.model.columns == 1):
            raise ValueError("parallel = 'columns' needs a network with two: model.name = 'alexnet', model.columns = 2")
        if self.train.schedule == "plateau" and self.train.drop_epochs:
            drops = list(self.train.drop_epochs)
            raise ValueError(f'train.schedule = "plateau" with train.drop_epochs = {drops}: leave one of them out')
        if self.loader.silence_seconds <= 2 * self.loader.heartbeat_seconds:
            raise ValueError("loader.silence_seconds must be more than two loader.heartbeat_seconds")
        return self


_ALEXNET_ONLY = ("dropout", "middle_std", "columns", "conv1_order", "map_norm", "sixth_layer", "without")


def _check_no_budget(settings: Settings) -> None:
    """ValueError for a limit of what is never left out."""
    for name in ("corrupt_count", "corrupt_share", "corrupt_consecutive"):
        value = getattr(settings, name)
        if value != Settings.model_fields[name].default:
            raise ValueError(f'{name} = {value!r} with on_corrupt = "fail": set on_corrupt = "skip", or leave it out')


def _check_model(model: ModelSettings) -> None:
    """ValueError for what would have no effect."""
    if model.name == "cifar":
        for name in _ALEXNET_ONLY:
            value = getattr(model, name)
            if value and value != ModelSettings.model_fields[name].default:
                raise ValueError(f"model.{name} = {value!r}: the four-layer net has nothing like it; leave it out")
    if len(set(model.without)) < len(model.without):
        raise ValueError(f"model.without = {list(model.without)}: name each layer once")
    if model.dropout and {"fc6", "fc7"} <= set(model.without):
        raise ValueError(f"model.dropout = {model.dropout}: fc6 and fc7 are left out, set it to 0 or keep one of them")
