"""A small model of a whole step: the floor of each part, times what measured rows say a part takes beyond it.

| part | grows with | fitted to |
|---|---|---|
| linear layers | parameters, launches, rows, weight type | stages `project`, `ffn`; many rows: `rectify+project+ffn` |
| head | its bytes | stage `head` |
| attention, dense | K/V bytes of a layer | stages `append`, `attend`, `merge` |
| attention, sparse | bytes read of a layer, blocks to select from | the stages of a sparse step |
| rectification's attention | its floor | stage `rectify` |
| rest | layers | stages `other`, `sample`, `gap` |

What is then left between model and measurement is carried from the nearest measured cases of the same method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from ...profiling.ceilings import Ceilings
from ..core.spec import MethodSpec, steps_of
from ..core.stages import ATTENTION
from ..decode.cases import DecodeCase
from ..engine.costs import BITS, dense_attention, kv_bytes, summary_bytes, weight_traffic
from .evidence import Measured, is_modelled
from .fit import Curve, fit_nonnegative

LAUNCHES = 4  # of linear layers, a layer
FEW_ROWS = 8  # up to here the rate hardly changes with rows, so that launches and bytes can be told apart
MATRIX_SHARE = 0.7  # of the matrix ceiling that products of more rows than were measured are taken to reach
NEAR, SHRINK = 1.0, 0.5  # how fast a measured case's say fades with its distance, and what all of them stand against
OTHER_MODEL = 2.0  # between two models; two doublings of batch or context are 1, and so is another kind of weights
ONE_LIST = ("group-mean", "group-sum")  # a list for each KV head
REST = ("other", "sample", "gap")
PARTS = ("linear", "attention", "rectification", "head", "rest")


class Unpredictable(ValueError):
    """The rows do not hold what a prediction needs; the message says which."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of a whole step, in microseconds.

    Attributes:
        parts_us: by PARTS, before the correction.
        correction: what nearby cases took over what the model says of them.
        support: the measured cases that the correction is from, those that count most first.
    """

    parts_us: dict[str, float]
    correction: float
    support: tuple[Measured, ...]

    @property
    def us(self) -> float:
        """The mean step, rectification amortised in."""
        return sum(self.parts_us.values()) * self.correction


class StepModel:
    """Fitted to measured steps."""

    def __init__(self, measured: Sequence[Measured]) -> None:
        """Raises Unpredictable where the steps hold no stages of a dense and of a sparse method."""
        self.launch_us: dict[str, float] = {}
        staged = [m for m in measured if m.stages_us]
        if not staged:
            raise Unpredictable("no measured step has its stages; measure one without --no-breakdown")
        self.ceilings = _ceilings(measured)
        self._linear = {kind: self._fit_linear(staged, kind) for kind in sorted({_kind(m.case) for m in staged})}
        heads = [m for m in staged if "head" in m.stages_us]
        self._head = _median([m.stages_us["head"] / self._head_floor_us(m.case) for m in heads])
        self._rest = _median([sum(m.stages_us.get(s, 0.0) for s in REST) / m.case.config.layers for m in staged])
        self._dense = self._fit_attention(staged, dense=True)
        self._sparse = self._fit_attention(staged, dense=False)
        self._rectify = self._fit_rectification(staged)
        known = [m for m in measured if self.knows_weights(m.case)]
        modelled = [(m, sum(self.parts_us(m.case, m.spec).values())) for m in known]
        if any(us <= 0 for _, us in modelled):
            raise Unpredictable("the rows' stages add up to no time; measure them again")
        self._residuals = [(m, log(m.us / us)) for m, us in modelled]

    def knows_weights(self, case: DecodeCase) -> bool:
        """Whether a measured step with the case's kind of weights has its stages."""
        return _kind(case) in self._linear

    def why_unknown(self, spec: MethodSpec) -> str | None:
        """Why the rows say nothing of a sparse method; None where a step ran its kernels on lists of the same kind."""
        sparse = [m.spec for m, _ in self._residuals if not m.spec.is_dense]
        if spec.is_dense or (is_modelled(spec.name) and _family(spec) in map(_family, sparse)):
            return None
        known = {(measured.name, _family(measured)): measured.label for measured in reversed(sparse)}
        return f"no measured step chooses its blocks as it does; there are {', '.join(sorted(known.values()))}"

    def predict(self, case: DecodeCase, spec: MethodSpec) -> Prediction:
        """Of a case, whether it was measured or not. Raises Unpredictable."""
        if reason := self.why_unknown(spec):
            raise Unpredictable(f"{spec.label}: {reason}")
        correction, support = self._correction(case, spec)
        return Prediction(self.parts_us(case, spec), correction, support)

    def parts_us(self, case: DecodeCase, spec: MethodSpec) -> dict[str, float]:
        """Each of PARTS, by the fits alone."""
        config, layers = case.config, case.config.layers
        first = layers if spec.is_dense else (spec.dense_layers or 0)
        attention = first * self._dense_us(case, spec.name if spec.is_dense else "")
        attention += (layers - first) * self._sparse_us(case, spec)
        parts = {
            "linear": self._linear_us(case, case.batch),
            "attention": attention,
            "rectification": 0.0,
            "head": self._head * self._head_floor_us(case),
            "rest": self._rest * config.layers,
        }
        if spec.rectifies:
            every = spec.config.rectify_every
            parts["rectification"] = (
                self._rectified_attention_us(case, every) + self._linear_us(case, case.batch * every)
            ) / every
        return parts

    # ---- linear layers

    def _fit_linear(self, staged: Sequence[Measured], weights: str) -> Curve:
        own = [m for m in staged if _kind(m.case) == weights]
        few = [m for m in own if m.case.batch <= FEW_ROWS and {"project", "ffn"} <= set(m.stages_us)]
        if not few:
            raise Unpredictable(f"no stages of a step of at most {FEW_ROWS} rows with {weights} weights")
        features, times = [], []
        for m in few:
            config = m.case.config
            ffn = 3 * config.hidden * config.ffn * config.layers
            for name, parameters in (("project", config.linear_parameters - ffn), ("ffn", ffn)):
                features.append((LAUNCHES / 2 * config.layers, parameters))
                times.append(m.stages_us[name])
        self.launch_us[weights], _ = fit_nonnegative(features, times)
        points = []
        for m in own:
            parameters, launches = m.case.config.linear_parameters, self._launches_us(m.case)
            if {"project", "ffn"} <= set(m.stages_us):
                us = m.stages_us["project"] + m.stages_us["ffn"]
                points.append((float(m.case.batch), (us - launches) / parameters))
            if "rectify+project+ffn" in m.stages_us:
                every = m.spec.config.rectify_every
                us = m.stages_us["rectify+project+ffn"] * every
                points.append((float(m.case.batch * every), (us - launches) / parameters))
        above = [(rows, rate) for rows, rate in points if rate > 0]  # else launches alone would take longer
        if not above:
            raise Unpredictable(f"the stages with {weights} weights take no longer than launches alone")
        return Curve(above)

    def _launches_us(self, case: DecodeCase) -> float:
        return LAUNCHES * case.config.layers * self.launch_us[_kind(case)]

    def _linear_us(self, case: DecodeCase, rows: int) -> float:
        """All layers' projections for so many rows."""
        if not self.knows_weights(case):
            there = ", ".join(sorted(self._linear))
            reason = f"no measured step with such weights has its stages; there are {there}"
            raise Unpredictable(f"--weights {case.weights}: {reason}")
        curve = self._linear[_kind(case)]
        parameters, most = case.config.linear_parameters, curve.sizes[-1]
        beyond = max(rows - most, 0) * 2 * parameters / (MATRIX_SHARE * self.ceilings.matrix_tflops * 1e6)
        return self._launches_us(case) + parameters * curve(rows) + beyond

    def _head_floor_us(self, case: DecodeCase) -> float:
        config = case.config
        head = weight_traffic(case, case.batch).bytes - int(config.linear_parameters * BITS[case.weights] / 8)
        return self.ceilings.floor_us(head, 0)

    # ---- attention

    def _fit_attention(self, staged: Sequence[Measured], *, dense: bool) -> dict[str, tuple[float, ...]]:
        """Coefficients by method; by "" of all together, for a method that has no rows of its own."""
        groups: dict[str, list[Measured]] = {"": []}
        for m in staged:
            if m.spec.is_dense == dense and not m.spec.dense_layers:
                groups[""].append(m)
                groups.setdefault(_family(m.spec), []).append(m)
        features = _dense_features if dense else _sparse_features
        fitted = {}
        for name, group in groups.items():
            times = [_attention_us(m) / m.case.config.layers for m in group]
            if len(group) > 1 or (not name and group):
                fitted[name] = fit_nonnegative([features(m.case, m.spec) for m in group], times)
        if "" not in fitted:
            raise Unpredictable(f"no measured {'dense' if dense else 'sparse'} step has its stages")
        return fitted

    def _dense_us(self, case: DecodeCase, method: str) -> float:
        return _dot(self._dense.get(method, self._dense[""]), _dense_features(case, None))

    def _sparse_us(self, case: DecodeCase, spec: MethodSpec) -> float:
        if spec.is_dense:
            return 0.0
        return _dot(self._sparse.get(_family(spec), self._sparse[""]), _sparse_features(case, spec))

    # ---- rectification

    def _fit_rectification(self, staged: Sequence[Measured]) -> tuple[float, ...]:
        rectified = [m for m in staged if m.spec.rectifies and "rectify" in m.stages_us]
        if not rectified:
            raise Unpredictable("no measured step with its stages rectifies")
        times = [m.stages_us["rectify"] * m.spec.config.rectify_every / (m.case.config.layers - 1) for m in rectified]
        return fit_nonnegative([self._chunk_features(m.case, m.spec.config.rectify_every) for m in rectified], times)

    def _chunk_features(self, case: DecodeCase, every: int) -> tuple[float, ...]:
        """Of one layer: the launch; the floor by bytes, and that by FLOPs."""
        dense = dense_attention(case)
        return 1.0, self.ceilings.floor_us(dense.bytes, 0), self.ceilings.floor_us(0, dense.flops * every)

    def _rectified_attention_us(self, case: DecodeCase, every: int) -> float:
        return (case.config.layers - 1) * _dot(self._rectify, self._chunk_features(case, every))

    # ---- what nearby cases say

    def _correction(self, case: DecodeCase, spec: MethodSpec) -> tuple[float, tuple[Measured, ...]]:
        weighted = []
        for m, residual in self._residuals:
            if _family(m.spec) == _family(spec):
                weighted.append((exp(-distance(case, m.case) / NEAR), residual, m))
        total = sum(weight for weight, _, _ in weighted)
        mean = sum(weight * residual for weight, residual, _ in weighted) / (total + SHRINK)
        nearest = sorted(weighted, key=lambda entry: -entry[0])[:3]
        return exp(mean), tuple(m for _, _, m in nearest)


def distance(a: DecodeCase, b: DecodeCase) -> float:
    """Between two cases: half the doublings of batch and context, and what tells models, weights and caches apart."""
    doublings = (abs(log(a.batch / b.batch, 2)) + abs(log(a.context / b.context, 2))) / 2
    other_model = OTHER_MODEL * (a.config.name != b.config.name)
    return doublings + other_model + (_kind(a) != _kind(b)) + (a.one_cache != b.one_cache)


def _kind(case: DecodeCase) -> str:
    """Of weights: both 16-bit types are read alike."""
    return "bf16" if case.weights == "fp16" else case.weights


def _family(spec: MethodSpec) -> str:
    """Methods whose steps run the same kernels, on lists of the same kind."""
    if spec.is_dense:
        return spec.name
    chained = steps_of(spec.name) == spec.name or spec.name == "resa-chain"
    lists = "" if spec.config.gqa_policy in ONE_LIST else spec.config.gqa_policy
    return " ".join(("chain" if chained else spec.name, spec.config.selector or "", lists)).rstrip()


def _attention_us(m: Measured) -> float:
    return sum(us for stage, us in m.stages_us.items() if all(part in ATTENTION for part in stage.split("+")))


def _dense_features(case: DecodeCase, spec: MethodSpec | None) -> tuple[float, ...]:
    return 1.0, kv_bytes(case, case.context)


def _sparse_features(case: DecodeCase, spec: MethodSpec) -> tuple[float, ...]:
    """Of one layer: launches; summaries; K/V of the chosen blocks; blocks that one list is chosen from."""
    config = spec.config
    chosen = min(config.selected(case.context) * config.block_size, case.context)
    return 1.0, summary_bytes(case, config, case.context), kv_bytes(case, chosen), config.blocks(case.context)


def _dot(coefficients: Sequence[float], features: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(coefficients, features, strict=True))


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    if not ordered:
        raise Unpredictable("no measured step has the stages that a prediction needs")
    return ordered[len(ordered) // 2]


def _ceilings(measured: Sequence[Measured]) -> Ceilings:
    """The rates that the rows were measured beside, in the middle."""
    read = _median([m.row.read_ceiling_gbps for m in measured if m.row.read_ceiling_gbps])
    matrix = [m.row.matrix_ceiling_tflops for m in measured if m.row.matrix_ceiling_tflops]
    return Ceilings(read, read, _median(matrix) if matrix else read / 4)
