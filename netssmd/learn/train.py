"""A data folder in, a model out: the training loop.

Every step takes the next T positions of B streams (see `streams`), carries the model's state over from the step before
without its gradient, and lowers the loss of `loss`. A moving average of the weights (EMA) is what gets validated and
exported. Losses are told in bits a packet, timing included: the code length of a packet under the model, comparable
between codecs as long as the IAT bins are.

What lies in the output folder:

    log.jsonl    one JSON object an interval: kind "train" or "val"
    last/        to go on from, bit for bit: tensors.safetensors (weights, EMA, moments, recurrent state) and state.json
    model/       the checkpoint: EMA weights as of the last validation, with a card that says what it has reached

On a CPU each core is a *lane*: a thread that takes its share of the streams through model, loss and gradient by itself,
single-threaded; the lanes meet once a step, when their gradients are added in their order. That scales better than
cores that meet at every operation, and where other programs want the cores it loses what they take and no more (cores
that wait for each other lose nine tenths).

The *label gap* is the gate of conditioning: bits a packet on validation sessions told a wrong label, less those told
the right one. A model that ignores its label has none (facts: a label told once, as the first token, is ignored).
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from netssmd.errors import ConfigError, NetssmdError, OutputError, UsageError
from netssmd.learn.adopt import adopt
from netssmd.learn.conduct import conduct
from netssmd.learn.config import TrainConfig, as_dict, check
from netssmd.learn.dataset import Dataset, Shard, open_dataset
from netssmd.learn.loss import BITS, Head, Plan, plan, restricted_loss, to_device
from netssmd.learn.prepare import Codec
from netssmd.learn.ranks import Ranks, ranks
from netssmd.learn.streams import Batch, Pass, Rows, Streams, choose_sessions
from netssmd.model.checkpoint import folder_of
from netssmd.model.conduct import load_temperatures
from netssmd.model.config import ModelConfig
from netssmd.model.mamba2 import Mamba2LM, State

ALONE = Ranks()
WARMUP_SHARE = 0.05  # of a training: the longest warm-up
NEVER = -1e4  # score of a token that must not be drawn; finite, so that a range of such tokens still has a softmax
Drop = Callable[[Tensor], Tensor]
NO_DECAY = ("norm.weight", "norm_f.weight", "bias", "A_log", "dt_bias", ".D")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training is, since the last report."""

    step: int
    tokens: int
    share: float  # of the training done, 0 to 1
    bits_per_packet: float
    tokens_per_second: float
    packets_per_second: float
    learning_rate: float
    gradient_norm: float
    elapsed_seconds: float

    @property
    def left_seconds(self) -> float:
        return self.elapsed_seconds * (1 - self.share) / self.share if self.share else math.inf


@dataclass(frozen=True, slots=True)
class Validation:
    """Bits a packet on validation sessions. `by_field` adds up to the whole; `by_label` is each label's own."""

    step: int
    packets: int
    bits_per_packet: float
    bits_per_token: float
    wrong_label_bits_per_packet: float
    by_label: dict[str, float] = field(default_factory=dict)
    by_field: dict[str, float] = field(default_factory=dict)

    @property
    def label_gap(self) -> float:
        return self.wrong_label_bits_per_packet - self.bits_per_packet


@dataclass(frozen=True, slots=True)
class Trained:
    """How a training ended. `model` is the checkpoint's folder, None before the first validation."""

    step: int
    tokens: int
    finished: bool
    model: Path | None
    validation: Validation | None


def learning_rate(config: TrainConfig, step: int, share: float) -> float:
    """Linear warm-up, over `warmup_steps` or the first twentieth of a training that is short; then a cosine from 1 to
    `final_share` over the training."""
    o = config.optimizer
    warm = min(1.0, max((step + 1) / o.warmup_steps, share / WARMUP_SHARE)) if o.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return o.learning_rate * warm * (o.final_share + (1 - o.final_share) * cosine)


def dropout(share: float, seed: tuple[int, int, int], device: torch.device) -> Drop:
    """Zeroes this share of the values of what it is given and scales up the others; the same ones for the same seed."""
    if not share:
        return lambda values: values
    generator = torch.Generator(device).manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def drop(values: Tensor) -> Tensor:
        kept = torch.empty(values.shape, dtype=values.dtype, device=device).bernoulli_(1 - share, generator=generator)
        return values * kept.div_(1 - share)

    return drop


def choose_device(config: TrainConfig) -> torch.device:
    name = config.machine.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"  # under torchrun: the GPU that `ranks` has set
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"machine.device {name!r}: {str(error).splitlines()[0]}; try auto or cpu") from None
    return device


def computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class Trainer:
    """The model, its optimizer and its place in the data. `step` trains; `save` and `load` keep and restore all of
    it."""

    def __init__(self, config: TrainConfig, dataset: Dataset, vocabulary: Any, ranks: Ranks = ALONE) -> None:
        self.config, self.dataset, self.vocabulary, self.ranks = config, dataset, vocabulary, ranks
        if config.batch.streams < ranks.world:
            raise UsageError(f"batch.streams is {config.batch.streams}; {ranks.world} processes need one each at least")
        self.device = choose_device(config)
        single_threaded()  # the lanes are the threads; what happens between them is little
        precision = config.machine.precision
        self.bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(self.device))
        self.rows = Rows.of(vocabulary)
        self.head = Head.of(vocabulary.fields)
        m = config.model
        self.model_config = ModelConfig(
            d_model=m.d_model,
            n_layer=m.n_layer,
            vocab_size=vocabulary.size,
            rows=vocabulary.rows,
            d_state=m.d_state,
            expand=m.expand,
            headdim=m.headdim,
            chunk_size=m.chunk_size,
        )
        torch.manual_seed(config.seed)
        self.model = Mamba2LM(self.model_config).to(self.device)
        if config.base:
            adopt(self.model, self.model_config, vocabulary.to_json(), folder_of(config.base))
        self.average = Mamba2LM(self.model_config).to(self.device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = make_optimizer(self.model, config)
        self.parameters = list(self.model.parameters())
        self.streams = self._streams(None)
        lanes = 1
        if self.device.type == "cpu":
            lanes = config.machine.threads or max(1, len(os.sched_getaffinity(0)) // ranks.beside)
        self.shares = split(config.batch.streams, ranks.world)  # the streams of each rank
        own = self.shares[ranks.rank]
        self.lanes = [slice(own.start + s.start, own.start + s.stop) for s in split(own.stop - own.start, lanes)]
        self.states: list[State | None] = [None] * len(self.lanes)
        self.pool = ThreadPoolExecutor(lanes, "lane", single_threaded) if lanes > 1 else None
        self.steps = self.tokens = 0
        self.elapsed = 0.0

    def _streams(self, state: dict[str, Any] | None) -> Streams:
        b = self.config.batch
        return Streams(
            self.dataset.train,
            self.rows,
            b.streams,
            seed=self.config.seed,
            alpha=b.balance,
            drop_label=b.drop_label,
            drop_conditions=b.drop_conditions,
            drop_left=b.drop_left,
            window=b.window,
            state=state,
        )

    @property
    def share(self) -> float:
        """How much of the training is done, by tokens, by epochs or by the clock, whichever is furthest."""
        limits = self.config.length
        shares = (
            (self.tokens, limits.tokens),
            (self.tokens, limits.epochs * len(self.dataset.train.tokens)),
            (self.elapsed, limits.hours * 3600),
        )
        return min(1.0, max(done / whole if whole else 0.0 for done, whole in shares))

    def forward(
        self, model: Mamba2LM, batch: Batch, state: State | None, drop: Drop = lambda values: values
    ) -> tuple[Tensor, State]:
        rows = torch.from_numpy(batch.rows).to(self.device)
        reset = torch.from_numpy(batch.reset).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            hidden, after = model(rows, state, reset, drop)
        return hidden, after

    def _gradients(
        self, batch: Batch, state: State | None, total: int, lane: int
    ) -> tuple[Tensor, tuple[Tensor, ...], State]:
        """One lane's part of the loss and its gradients, and the state it leaves."""
        where = to_device(plan(self.head, batch.targets, batch.limits), self.device)
        drop = dropout(self.config.optimizer.dropout, (self.config.seed, self.steps, lane), self.device)
        hidden, after = self.forward(self.model, batch, state, drop)
        loss, _ = restricted_loss(hidden, self.model.backbone.embedding.weight, where, total)
        return loss.detach(), torch.autograd.grad(loss, self.parameters), after.detach()

    def in_lanes(self, function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        """`map` over the lanes, all at once; the answers in the order of the lanes."""
        return list(map(function, *arguments)) if self.pool is None else list(self.pool.map(function, *arguments))

    def step(self) -> tuple[Batch, Tensor, Tensor]:
        """One step of the optimizer. Returns the batch, its mean loss (nats a token) and the gradient's norm, both on
        the device."""
        batch = self.streams.next(self.config.batch.segment)
        parts = [batch.part(lane) for lane in self.lanes]
        lanes = [lane.start for lane in self.lanes]
        results = self.in_lanes(self._gradients, parts, self.states, [batch.targets.size] * len(parts), lanes)
        self.states = [state for _, _, state in results]
        loss = torch.stack([loss for loss, _, _ in results]).sum()
        self.ranks.sum([loss])
        for parameter, *gradients in zip(self.parameters, *(gradients for _, gradients, _ in results), strict=True):
            for other in gradients[1:]:
                gradients[0].add_(other)
            parameter.grad = gradients[0]
        self.ranks.sum([gradient for parameter in self.parameters if (gradient := parameter.grad) is not None])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.steps, self.share)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.tokens += batch.targets.size
        self._average()
        return batch, loss, norm

    @torch.no_grad()
    def _average(self) -> None:
        """The average is short-sighted at first, when the weights move fast."""
        decay = min(self.config.optimizer.ema, (1 + self.steps) / (10 + self.steps))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        for average, weight in pairs:
            average.lerp_(weight, 1 - decay)

    # ---- validation

    def _losses(self, batch: Batch, state: State | None) -> tuple[Plan, Tensor, State]:
        """One lane's losses under the average, left-over positions left out."""
        where = plan(self.head, batch.targets, batch.limits, batch.label != Pass.LEFT_OVER)
        with torch.no_grad():
            hidden, after = self.forward(self.average, batch, state)
            _, losses = restricted_loss(hidden, self.average.backbone.embedding.weight, to_device(where, self.device))
        return where, losses, after

    def code_lengths(self, sessions: list[int], shift: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Bits [labels + 1, fields] and tokens likewise over validation sessions; the last label is the unknown one."""
        n_labels, n_fields = len(self.rows.labels), len(self.head.spans)
        bits = np.zeros((n_labels + 1) * n_fields)
        tokens = np.zeros_like(bits)
        run = Pass(self.dataset.val, self.rows, sessions, self.config.batch.streams, shift)
        lanes = split(len(run.queues), len(self.lanes))
        states: list[State | None] = [None] * len(lanes)
        for length in run.lengths(self.config.batch.segment):
            batch = run.next(length)
            parts = [batch.part(lane) for lane in lanes]
            results = self.in_lanes(self._losses, parts, states)
            states = [state for _, _, state in results]
            for part, (where, losses, _) in zip(parts, results, strict=True):
                label = part.label.reshape(-1)[where.order.numpy()]
                cell = np.where(label < 0, n_labels, label) * n_fields + self.head.field_of[where.targets.numpy()]
                bits += np.bincount(cell, losses.double().cpu().numpy() * BITS, len(bits))
                tokens += np.bincount(cell, minlength=len(bits))
        return bits.reshape(-1, n_fields), tokens.reshape(-1, n_fields)

    def validate(self, budget: int) -> Validation:
        """Whole validation sessions of about `budget` tokens (0: all), with the right label and with the one half-way
        round."""
        shard = self.dataset.val
        sessions = choose_sessions(shard, budget, seed=0)
        bits, tokens = self.code_lengths(sessions)
        wrong, _ = self.code_lengths(sessions, shift=max(1, len(self.rows.labels) // 2))
        chosen = shard.sessions[sessions]
        packets = np.bincount(chosen["label"] % (len(self.rows.labels) + 1), chosen["packets"], len(bits))
        names = [*self.vocabulary.labels, "(no label)"]
        total = int(packets.sum())
        return Validation(
            step=self.steps,
            packets=total,
            bits_per_packet=float(bits.sum() / total),
            bits_per_token=float(bits.sum() / tokens.sum()),
            wrong_label_bits_per_packet=float(wrong.sum() / total),
            by_label={n: float(bits[i].sum() / packets[i]) for i, n in enumerate(names) if packets[i]},
            by_field={f.name: float(b / total) for f, b in zip(self.vocabulary.fields, bits.sum(0), strict=True) if b},
        )

    # ---- keeping and going on

    def fingerprint(self) -> str:
        """Names the data: what a training must find unchanged to go on."""
        digest = hashlib.sha256(json.dumps(self.dataset.vocabulary, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.dataset.train.sessions).tobytes())
        return digest.hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        found = {f"weights.{name}": p.detach() for name, p in self.model.named_parameters()}
        found |= {f"average.{name}": p for name, p in self.average.named_parameters()}
        for name, p in self.model.named_parameters():
            for key in ("exp_avg", "exp_avg_sq"):
                if moments := self.optimizer.state.get(p):
                    found[f"{key}.{name}"] = moments[key]
        states = [state for state in self.states if state is not None]
        if states:  # [n_layer, B, ...] of all lanes
            for name, mine in (("conv", [s.conv for s in states]), ("ssm", [s.ssm for s in states])):
                own = torch.cat(mine, 1)
                shapes = [(own.shape[0], share.stop - share.start, *own.shape[2:]) for share in self.shares]
                if gathered := self.ranks.gather(own, shapes):
                    found[f"state.{name}"] = torch.cat(gathered, 1)
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def save(self, path: Path) -> None:
        """Write the folder `path`, whole or not at all; rank 0 does, with what the others send. Raises OutputError."""
        tensors = self.tensors()
        if not self.ranks.leads:
            return
        part, old = path.with_name(path.name + ".part"), path.with_name(path.name + ".old")
        state = {
            "steps": self.steps,
            "tokens": self.tokens,
            "elapsed_seconds": self.elapsed,
            "streams": self.streams.state(),
            "data": self.fingerprint(),
            "config": as_dict(self.config),
        }
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            save_file(tensors, part / "tensors.safetensors")
            (part / "state.json").write_text(json.dumps(state))
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(path, old)
            os.rename(part, path)
            shutil.rmtree(old, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            what = getattr(error, "strerror", None) or error
            raise OutputError(f"{part}: {what}; the checkpoint before it is kept") from None

    def load(self, path: Path) -> None:
        """Go on from a folder that `save` wrote. Raises UsageError when it belongs to another model or other data."""
        try:
            state = json.loads((path / "state.json").read_text())
            with safe_open(path / "tensors.safetensors", framework="pt", device=str(self.device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a mapping
        except Exception as error:  # safetensors has errors of its own
            raise UsageError(f"{path}: {error}; remove it to begin anew") from None
        config = as_dict(self.config)
        for key, mine, theirs in (
            ("data", self.fingerprint(), state["data"]),
            ("model", config["model"], state["config"]["model"]),
            ("streams", config["batch"]["streams"], state["config"]["batch"]["streams"]),
            ("seed", config["seed"], state["config"]["seed"]),
        ):
            if mine != theirs:
                raise UsageError(
                    f"{path}: a training with another {key} lies here; choose another output.path or say --fresh"
                )
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"weights.{name}"])
                if f"exp_avg.{name}" in tensors:
                    self.optimizer.state[p] = {
                        "step": torch.tensor(float(state["steps"]), device=self.device),
                        "exp_avg": tensors[f"exp_avg.{name}"],
                        "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
                    }
            for name, p in self.average.named_parameters():
                p.copy_(tensors[f"average.{name}"])
        if "state.conv" in tensors:
            conv, ssm = tensors["state.conv"], tensors["state.ssm"]
            self.states = [State(conv[:, lane].contiguous(), ssm[:, lane].contiguous()) for lane in self.lanes]
        self.steps, self.tokens, self.elapsed = state["steps"], state["tokens"], state["elapsed_seconds"]
        self.streams = self._streams(state["streams"])


def single_threaded() -> None:
    """For the calling thread: operations of one thread, and no denormals, as which decayed states would linger
    slowly."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


@contextmanager
def as_before() -> Iterator[None]:
    """What `single_threaded` did to the calling thread is undone at the end: it may have other work."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


def split(streams: int, lanes: int) -> list[slice]:
    """The streams of each lane, as even as can be; no lane without a stream."""
    lanes = max(1, min(streams, lanes))
    edges = [streams * lane // lanes for lane in range(lanes + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(edges)]


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; vectors (norms, biases, A_log, dt_bias, D) do not decay."""
    o = config.optimizer
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, p in model.named_parameters():
        (free if name.endswith(NO_DECAY) else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": o.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=o.learning_rate, betas=o.betas, fused=True)


# ---- the loop

Report = Callable[[Progress | Validation], None]


def train(
    config: TrainConfig,
    codec: Codec,
    *,
    report: Report = lambda news: None,
    stop: Callable[[], bool] = lambda: False,
    fresh: bool = False,
) -> Trained:
    """Train until the configured length is reached or `stop()` says so; go on from OUT/last if it is there.

    Arguments: codec: loads the data folder's vocabulary. report: called at every interval. stop: asked after every
    step. fresh: begin anew although OUT/last is there. Raises UsageError, ConfigError, OutputError; NetssmdError when
    the loss is no longer finite.
    """
    check(config, "training")
    dataset = open_dataset(Path(config.data))
    if not len(dataset.train.sessions):
        raise UsageError(f"{config.data}: no sessions in the train split; give `netssmd prepare` more captures")
    out = Path(config.output.path)
    with as_before(), ranks(config.machine.device) as place:
        trainer = Trainer(config, dataset, codec.load(dataset.vocabulary), place)
        try:
            out.mkdir(parents=True, exist_ok=True)
            where = out / "log.jsonl" if place.leads else Path(os.devnull)
            log = open(where, "w" if fresh else "a", buffering=1)  # noqa: SIM115 closed below
        except OSError as error:
            raise OutputError(f"{out}: {error.strerror}; choose another output.path") from None
        if not fresh:
            resume(trainer, out / "last")
        place.wait()
        with log:

            def tell(news: Progress | Validation) -> None:
                if place.leads:
                    log.write(line(news))
                    report(news)

            return _loop(trainer, out, tell, stop)


def resume(trainer: Trainer, last: Path) -> None:
    """Go on from `last`, or from the one before it if the machine stopped between two renames."""
    for path in (last, last.with_name(last.name + ".old")):
        if (path / "state.json").is_file():
            trainer.load(path)
            return


def line(news: Progress | Validation) -> str:
    kind = "train" if isinstance(news, Progress) else "val"
    extra = {} if isinstance(news, Progress) else {"label_gap": news.label_gap}
    return json.dumps({"kind": kind, "time": time.time(), **asdict(news), **extra}) + "\n"


def _loop(trainer: Trainer, out: Path, report: Report, stop: Callable[[], bool]) -> Trained:
    config = trainer.config
    validation: Validation | None = None
    meter = Meter(trainer)

    def judge(budget: int) -> Validation | None:
        if not trainer.ranks.leads:
            trainer.ranks.wait()
            return None
        result = judged(budget)
        trainer.ranks.wait()
        return result

    def judged(budget: int) -> Validation | None:
        if not len(trainer.dataset.val.sessions):
            export(trainer, out / "model", None)
            return None
        result = trainer.validate(budget)
        report(result)
        export(trainer, out / "model", result)
        return result

    stopped = False
    while trainer.share < 1.0 and not stopped:
        before = time.monotonic()
        result = trainer.step()
        meter.add(*result, time.monotonic() - before)
        step = trainer.steps
        if step % config.output.log_steps == 0 or trainer.share >= 1.0:
            report(meter.read())
        if config.output.checkpoint_steps and step % config.output.checkpoint_steps == 0:
            trainer.save(out / "last")
        stopped = trainer.ranks.agree(0.0, stop(), trainer.device)[1]
        if (
            config.validation.every_steps
            and step % config.validation.every_steps == 0
            and not stopped
            and trainer.share < 1.0
        ):
            validation = judge(config.validation.tokens)
        trainer.elapsed, _ = trainer.ranks.agree(trainer.elapsed + time.monotonic() - before, False, trainer.device)
    meter.check()
    trainer.save(out / "last")
    if not stopped:
        validation = judge(config.validation.final_tokens)
    model = out / "model"
    return Trained(trainer.steps, trainer.tokens, not stopped, model if model.is_dir() else None, validation)


class Meter:
    """Adds up what happened between two reports."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._begin()

    def _begin(self) -> None:
        self.loss: Tensor = torch.zeros((), device=self.trainer.device)  # nats, summed on the device: no waiting for it
        self.norm: Tensor = torch.zeros((), device=self.trainer.device)
        self.tokens, self.packets, self.seconds = 0, 0.0, 0.0

    def add(self, batch: Batch, loss: Tensor, norm: Tensor, seconds: float) -> None:
        self.loss = self.loss + loss * batch.targets.size
        self.norm = norm
        self.tokens += batch.targets.size
        self.packets += batch.packets
        self.seconds += seconds

    def check(self) -> float:
        """Raises NetssmdError when the loss is not finite: then nothing of it may be kept."""
        loss = float(self.loss)
        if not math.isfinite(loss):
            raise NetssmdError(
                f"training: the loss is {loss} near step {self.trainer.steps}; go on from the last checkpoint with a "
                "lower optimizer.learning_rate"
            )
        return loss

    def read(self) -> Progress:
        loss, seconds, trainer = self.check(), max(1e-9, self.seconds), self.trainer
        progress = Progress(
            step=trainer.steps,
            tokens=trainer.tokens,
            share=trainer.share,
            bits_per_packet=loss * BITS / self.packets,
            tokens_per_second=self.tokens / seconds,
            packets_per_second=self.packets / seconds,
            learning_rate=trainer.optimizer.param_groups[0]["lr"],
            gradient_norm=float(self.norm),
            elapsed_seconds=trainer.elapsed,
        )
        self._begin()
        return progress


# ---- the model that comes out


def export(trainer: Trainer, path: Path, validation: Validation | None) -> None:
    """Write the averaged weights as a checkpoint, whole or not at all."""
    from netssmd.model.checkpoint import save_checkpoint

    part = path.with_name(path.name + ".part")
    tensors = {name: p.detach().float().cpu() for name, p in trainer.average.named_parameters()}
    config = dataclasses.replace(trainer.model_config, head_bias=True)
    tensors["lm_head.bias"] = never_seen(trainer.dataset.train, config.vocab_size)
    try:
        shutil.rmtree(part, ignore_errors=True)
        known = conduct(trainer.dataset.train, trainer.vocabulary) if trainer.rows.left else None
        if known is not None and trainer.config.base:  # what its base is best drawn at
            known["temperatures"] = load_temperatures(folder_of(trainer.config.base))
        save_checkpoint(part, config, trainer.vocabulary.to_json(), tensors, card(trainer, validation), conduct=known)
        shutil.rmtree(path, ignore_errors=True)
        os.rename(part, path)
    except OSError as error:
        raise OutputError(f"{part}: {error.strerror or error}; the model was not written") from None


def never_seen(shard: Shard, vocab_size: int) -> Tensor:
    """Scores that keep tokens which training never saw from being drawn: bins of gaps longer than any capture's, say.

    Training pushes such a token's probability down, but a session has thousands of chances to draw one of hundreds.
    """
    counts = np.bincount(shard.tokens, minlength=vocab_size)
    return torch.from_numpy(np.where(counts == 0, NEVER, 0.0).astype(np.float32))


def describe(shard: Shard) -> str:
    return f"{len(shard.sessions):,} sessions, {shard.packets:,} packets, {len(shard.tokens):,} tokens"


def card(trainer: Trainer, validation: Validation | None) -> str:
    """The model card: what it was trained on, how, and what it reaches."""
    m, config = trainer.model_config, trainer.config
    lines = [
        f"# {config.output.name or 'A netssmd model'}",
        "",
        "Generates labelled network sessions with netssmd. No address or sequence number is a token of its vocabulary.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {m.parameters:,} |",
        f"| shape | d_model {m.d_model}, {m.n_layer} layers, d_state {m.d_state}, headdim {m.headdim} |",
        f"| vocabulary | {m.vocab_size:,} tokens, {m.rows - m.vocab_size:,} further embedding rows |",
        f"| trained on | {describe(trainer.dataset.train)} |",
        f"| seen in training | {trainer.tokens:,} tokens in {trainer.steps:,} steps, {trainer.elapsed / 3600:.2f} h |",
        f"| labels | {len(trainer.rows.labels)} |",
    ]
    if validation is None:
        return "\n".join([*lines, "", "It was not validated: the data had no validation sessions.", ""])
    lines += [
        f"| validated on | {validation.packets:,} packets of {describe(trainer.dataset.val)} |",
        f"| bits a packet | {validation.bits_per_packet:.2f}, timing included |",
        f"| with a wrong label | {validation.wrong_label_bits_per_packet:.2f}: label gap {validation.label_gap:.2f} |",
        "",
        "Validation bits a packet, by label:",
        "",
        "| label | bits |",
        "|---|---|",
        *(f"| {name} | {bits:.2f} |" for name, bits in sorted(validation.by_label.items())),
        "",
        "By field (of all packets; the sum is the whole):",
        "",
        "| field | bits |",
        "|---|---|",
        *(f"| {name} | {bits:.3f} |" for name, bits in sorted(validation.by_field.items(), key=lambda item: -item[1])),
        "",
    ]
    return "\n".join(lines)
