"""Transfer methods, one row each: the signal, what the method adds to the backbone, and which parameters it tunes.

`tuned` and `frozen` are regexes over "/"-joined parameter paths. Every parameter must match exactly one of them, and every
regex must match a parameter, so no parameter is tuned or frozen by oversight.
"""

import dataclasses
import re
from collections.abc import Mapping

from toast_jax import trees
from toast_jax.errors import InputError, choose, listed
from toast_jax.model.additions.adapter import Adapters
from toast_jax.model.additions.lora import LowRankDeltas
from toast_jax.model.additions.protocol import Addition
from toast_jax.model.additions.ssf import ScaleAndShift
from toast_jax.model.layers.batch_norm import without_statistics

HEAD = "head/.*"
NOTHING = "(?!)"
PROBE = "probe/.*"  # part of the head, in front of its linear layer
BACKBONE = "backbone/.*"
PRIOR = "top_down/prior"
TRANSFORM = "top_down/transform"
# Stacked if all sites of the network have one width, numbered (`back_0`, ...) if they are stages.
FEEDBACK = r"top_down/(back|out)(_\d)?"
BACK, OUT = r"top_down/back(_\d)?", r"top_down/out(_\d)?"
LORA = "lora/.*"
# Linear layers, convolutions and norms of the backbone, each by the parameter that multiplies its input.
OPERATIONS = "backbone/(.*/)?(kernel|scale)"
NORMS = r"backbone/(.*/)?norm\d?/.*"
LAST_BLOCKS = r"backbone/(stages_\d/)?last_\d+/.*"
# The first norm of every block, whose size is the block's width.
BLOCKS = r"(?P<block>backbone/(stages_\d/)?(blocks|last_\d+))/norm1?/scale"


@dataclasses.dataclass(frozen=True)
class Method:
    """Describes one method.

    Attributes:
      signal: "" (a single look), "prompts" or "top_down".
      tuned: regexes of the tuned parameters.
      frozen: regexes of the frozen parameters.
      added: the `additions.protocol.Addition` attached to the backbone, or None. Prompts and the probe are not among them:
        `signal` and `probe` ask for those.
      probe: whether the head reads tokens through an attentive probe instead of the backbone's pooled output.
      module_fields: config fields that must agree between a run and the module file it starts from.
      starts_from: other methods whose module files it accepts, each with a regex of the parameters missing in such a file.
    """

    signal: str
    tuned: tuple[str, ...]
    frozen: tuple[str, ...]
    added: Addition | None = None
    probe: bool = False
    module_fields: tuple[str, ...] = ()
    starts_from: tuple[tuple[str, str], ...] = ()

    @property
    def pretunes(self) -> bool:
        """Whether it tunes more than the head and probe, so that pre-tuning writes a module file."""
        return any(regex not in (HEAD, PROBE) for regex in self.tuned)

    @property
    def starts_unchanged(self) -> bool:
        """Whether tuning starts from the backbone's outputs, or close to them: it tunes the backbone or a small addition."""
        return not self.signal and (bool(self.added) or any(regex.startswith("backbone/") for regex in self.tuned))


_LORA_FIELDS = ("lora.rank", "lora.alpha")
# TOAST-Lite adds deltas to a module that was pre-tuned as toast (the paper's way) or with its deltas.
_WITHOUT_DELTAS = (("toast", LORA),)
# Methods of networks with a classifier. The kernels that method lora adapts depend on the family, see `with_lora`.
METHODS = {
    "linear": Method("", tuned=(HEAD,), frozen=(BACKBONE,)),
    "ep": Method("", tuned=(HEAD, PROBE), frozen=(BACKBONE,), probe=True),
    "finetune": Method("", tuned=(HEAD, BACKBONE), frozen=()),
    # The last `config.tuned_blocks` blocks are built outside the scanned stack, where they can be tuned.
    "partial": Method(
        "", tuned=(HEAD, LAST_BLOCKS), frozen=(r"backbone/(?!(stages_\d/)?last_\d).*",), module_fields=("tuned_blocks",)
    ),
    "bias": Method("", tuned=(HEAD, "backbone/(.*/)?bias"), frozen=("backbone/(?!(.*/)?bias$).*",)),
    "ln": Method("", tuned=(HEAD, NORMS), frozen=(r"backbone/(?!(.*/)?norm\d?/).*",)),
    "ssf": Method("", tuned=(HEAD, "ssf/.*"), frozen=(BACKBONE,), added=ScaleAndShift(OPERATIONS)),
    "adapter_plus": Method(
        "",
        tuned=(HEAD, "adapter/.*"),
        frozen=(BACKBONE,),
        added=Adapters(BLOCKS),
        module_fields=("adapter.rank",),
    ),
    "vpt": Method("prompts", tuned=(HEAD, "prompts/.*"), frozen=(BACKBONE,), module_fields=("prompts.num", "prompts.deep")),
    "lora": Method("", tuned=(HEAD, LORA), frozen=(BACKBONE,), module_fields=_LORA_FIELDS),
    # A module of toast_ep has the same parameters; its probe is part of the head.
    "toast": Method(
        "top_down", tuned=(HEAD, FEEDBACK, PRIOR), frozen=(BACKBONE, TRANSFORM), starts_from=(("toast_ep", NOTHING),)
    ),
    "toast_lite": Method(
        "top_down",
        tuned=(HEAD, LORA, PRIOR, TRANSFORM),
        frozen=(BACKBONE, FEEDBACK),
        added=LowRankDeltas(FEEDBACK),
        module_fields=_LORA_FIELDS,
        starts_from=_WITHOUT_DELTAS,
    ),
}
METHODS["toast_ep"] = dataclasses.replace(
    METHODS["toast"], tuned=(*METHODS["toast"].tuned, PROBE), probe=True, starts_from=(("toast", PROBE),)
)
# Methods of language models, whose head is part of the backbone. Toast tunes B_l; `tune_back` adds A_l.
LANGUAGE_METHODS = {
    "finetune": Method("", tuned=(BACKBONE,), frozen=()),
    "lora": Method("", tuned=(LORA,), frozen=(BACKBONE,), module_fields=_LORA_FIELDS),
    "toast": Method("top_down", tuned=(OUT, PRIOR), frozen=(BACKBONE, TRANSFORM, BACK)),
    "toast_lite": Method(
        "top_down",
        tuned=(LORA, PRIOR),
        frozen=(BACKBONE, TRANSFORM, FEEDBACK),
        added=LowRankDeltas(FEEDBACK),
        module_fields=_LORA_FIELDS,
        starts_from=_WITHOUT_DELTAS,
    ),
}


def with_lora(rows: Mapping[str, Method], kernels: str) -> dict[str, Method]:
    """Complete the row of method lora with a family's kernels, a regex over paths."""
    return {**rows, "lora": dataclasses.replace(rows["lora"], added=LowRankDeltas(kernels))}


def row(config, rows: Mapping[str, Method]) -> Method:
    """Return the row that `config.method` names, adapted to the config.

    The fields `lora`, `adapter`, `head.tune`, `tune_back`, `tune_transform`, `stage`, `task_weight` and `distillation_weight`
    change it. Pre-tuning tunes the same parameters as tuning and, for toast, also every A_l. With the variational loss alone it
    tunes only the A_l, which alone have a gradient. The head is frozen if no loss reads the labels.

    Args:
      config: of a run.
      rows: methods of the family, by name.

    Raises:
      InputError: an unknown method, or one that the family does not support.
    """
    method = choose("config.method", config.method, rows)
    if method.added:
        method = dataclasses.replace(method, added=method.added.configured(config))
    if config.stage == "pretune":
        if not (config.task_weight or config.distillation_weight):
            rest = (cell for cell in method.tuned + method.frozen if cell not in (FEEDBACK, BACK, OUT))
            return dataclasses.replace(method, tuned=(BACK,), frozen=(*rest, OUT))
    if config.stage == "pretune" or config.tune_back:
        method = pretuned(method)
    if config.tune_transform:
        method = _moved(method, TRANSFORM, tuned=True)
    labels = config.stage == "tune" or config.task_weight
    if HEAD in method.tuned and not (config.head.tune and labels):
        method = _moved(method, HEAD, tuned=False)
    return method


def pretuned(method: Method) -> Method:
    """Return the row for pre-tuning, which also tunes a frozen A_l."""
    return _moved(method, BACK, tuned=True) if BACK in method.frozen else method


def _moved(method, regex, *, tuned):
    """Move a regex to the tuned or to the frozen cell."""
    sides = [[r for r in side if r != regex] for side in (method.tuned, method.frozen)]
    sides[0 if tuned else 1].append(regex)
    return dataclasses.replace(method, tuned=tuple(sides[0]), frozen=tuple(sides[1]))


def tuned_mask(params: dict, method: Method) -> dict:
    """Mark every parameter as tuned (True) or frozen (False).

    Everything that depends on freezing reads this mask.

    Args:
      params: nested dict of arrays or shapes.
      method: row with the regexes.

    Returns:
      a tree like `params`.

    Raises:
      InputError: a regex matches no parameter, or a parameter matches no regex or several; the names are listed.
    """
    cells = [(regex, True) for regex in method.tuned] + [(regex, False) for regex in method.frozen]
    paths = list(trees.flat(params))
    matches = {path: [(regex, tuned) for regex, tuned in cells if re.fullmatch(regex, path)] for path in paths}
    matched = {regex for matching in matches.values() for regex, _ in matching}
    if idle := [regex for regex, _ in cells if regex not in matched]:
        raise InputError(f"These regexes of the method match no parameter: {listed(idle)}; parameters: {listed(paths)}.")
    if uncovered := [path for path, matching in matches.items() if not matching]:
        raise InputError(f"No regex of the method's tuned or frozen cells covers these parameters: {listed(uncovered)}.")
    if doubled := [path for path, matching in matches.items() if len(matching) > 1]:
        raise InputError(f"Several regexes of the method cover these parameters: {listed(doubled)}.")
    return trees.nested({path: matching[0][1] for path, matching in matches.items()})


def module_paths(mask: dict) -> set[str]:
    """List the parameters of a module file: all but the head, the probe and the frozen part of the backbone.

    Args:
      mask: from `tuned_mask`.
    """
    outside = {True: "(head|probe)/", False: "(head|probe|backbone)/"}
    return {path for path, tuned in trees.flat(mask).items() if not re.match(outside[tuned], path)}


def table(params: dict, method: Method) -> str:
    """Format the start-up table: a line per regex (tuned or frozen, arrays, parameters), then totals."""
    flat = trees.flat(without_statistics(params))
    lines = [f"{'':7} {'arrays':>7} {'parameters':>13}  matched by"]
    sums = {True: 0, False: 0}
    for regex, tuned in [(r, True) for r in method.tuned] + [(r, False) for r in method.frozen]:
        leaves = [leaf for path, leaf in flat.items() if re.fullmatch(regex, path)]
        sums[tuned] += trees.count(leaves)
        lines.append(f"{'tuned' if tuned else 'frozen':7} {len(leaves):7} {trees.count(leaves):13,}  {regex}")
    total = sum(sums.values())
    head = trees.count(without_statistics(params["head"])) if HEAD in method.tuned else 0
    lines.append(
        f"total {total:,} parameters, {sums[True]:,} tuned ({sums[True] / total:.2%}), "
        f"{sums[True] - head:,} of them outside the head"
    )
    return "\n".join(lines)
