"""Difficulty: measures of one row from the teacher's own signals, and one number that the job's formula makes of them.

A formula is arithmetic over the names below with `mean`, `min`, `max`, `exp`, `log`, `sqrt` and `abs`. A measure that a
row does not have is None: `mean` leaves it out, anything else gives no difficulty.
"""

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from factory.errors import JobError
from factory.records import Generation, Measures, Outcome, SampleStats
from factory.signals import Array

if TYPE_CHECKING:
    from simpleeval import SimpleEval

Values = Mapping[str, float | None]
Formula = Callable[[Values], float | None]

KEY: Final = "difficulty.formula"
EFFORT_TOKENS: Final = 256
ALWAYS: Final = ("reasoning_tokens", "effort")
OF_LOGPROBS: Final = ("entropy_mean", "entropy_max", "surprise", "confidence", "uncertainty", "surprisal")
OF_SAMPLES: Final = ("pass_rate", "agreement", "failure", "disagreement")
OF_JUDGE: Final = ("judge_score", "doubt")
NEEDS: Final = {
    **dict.fromkeys(OF_LOGPROBS, "signals.top_k of 1 or more"),
    **dict.fromkeys(OF_SAMPLES, "samples.n of 2 or more"),
    **dict.fromkeys(OF_JUDGE, "a [judge]"),
}
NAMES: Final = (*ALWAYS, *OF_LOGPROBS, *OF_SAMPLES, *OF_JUDGE)
OPERATORS: Final = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub)
NODES: Final = (ast.Name, ast.Call, ast.Constant, ast.BinOp, ast.UnaryOp)
ALLOWED: Final = (ast.Expression, ast.Load, *NODES, *OPERATORS)


def measure(outcome: Outcome, formula: Formula | None = None) -> Measures:
    """The measures of a row; every float is finite. `difficulty` is None without a formula.

    A row that was not accepted has those of its last attempt, where the teacher gave a whole completion: they tell what
    its sureness is worth. Nobody gives a formula for it, as difficulty ranks rows that are trained on.
    """
    generation = outcome.generation
    if generation is None or generation.failure is not None:
        return Measures()
    tokens = len(generation.completion_token_ids)
    start = min(max(generation.answer_start, 0), tokens)
    # of several turns the answer is the last one's, and what stands between them is nobody's
    scored_T = np.ones(tokens, np.bool_) if generation.completion_mask is None else generation.completion_mask > 0
    gaps = np.flatnonzero(~scored_T[:start])
    begun = int(gaps[-1]) + 1 if len(gaps) else 0
    measures = Measures(reasoning_tokens=_reasoning_tokens(generation, start - begun))
    if generation.logprobs is not None:
        entropy_T, sampled_T = generation.logprobs.entropy_T[scored_T], generation.logprobs.sampled_T[scored_T]
        of_all, of_answer = _mean(sampled_T), _mean(generation.logprobs.sampled_T[start:])
        measures = replace(
            measures,
            entropy_mean=_mean(entropy_T),
            entropy_max=_finite(float(entropy_T.max())) if entropy_T.size else None,
            # 0.0 - x, since -x of 0.0 is -0.0, which other readers print and sort apart from 0
            surprise=None if of_all is None else 0.0 - of_all,
            confidence=None if of_answer is None else math.exp(min(of_answer, 0.0)),
        )
    judged = outcome.verdict.score if outcome.verdict else None
    return replace(measures, difficulty=formula(values(outcome.samples, judged, measures))) if formula else measures


def _reasoning_tokens(generation: Generation, start: int) -> int | None:
    """By the ids; of an endpoint that gives none of a reasoning by its own count, None where it has none either."""
    if generation.reasoning is None or start or generation.usage is None:
        return 0 if generation.reasoning is None else start
    return generation.usage.reasoning or None


def values(samples: SampleStats, judged: float | None, measures: Measures) -> Values:
    """All that a formula may name: the raw measures, and their parts in [0, 1], where higher is harder."""
    tokens = measures.reasoning_tokens
    return {
        "entropy_mean": measures.entropy_mean,
        "entropy_max": measures.entropy_max,
        "surprise": measures.surprise,
        "confidence": measures.confidence,
        "reasoning_tokens": tokens,
        "pass_rate": samples.pass_rate,
        "agreement": samples.agreement,
        "judge_score": judged,
        "uncertainty": _saturate(measures.entropy_mean),
        "surprisal": _saturate(measures.surprise),
        "effort": None if tokens is None else _saturate(tokens / EFFORT_TOKENS),
        "failure": _complement(samples.pass_rate),
        "disagreement": _complement(samples.agreement),
        "doubt": _complement(judged),
    }


def known_names(samples_n: int, top_k: int, judged: bool) -> set[str]:
    """The names that rows of such a job have a value for."""
    names = set(ALWAYS)
    names |= set(OF_LOGPROBS) if top_k else set()
    names |= set(OF_SAMPLES) if samples_n > 1 else set()
    return names | (set(OF_JUDGE) if judged else set())


def compile_formula(text: str, known: set[str]) -> Formula:
    """A function from `values` to a finite number, or None where a row has none; it never raises.

    Raises JobError where the text is no formula, names what does not exist, or leans on what no row will have.
    """
    tree = _parse(text)
    _require_arithmetic(tree)
    _require_values(tree, known)
    evaluator, body = _evaluator(), tree.body

    def evaluate(row: Values) -> Any:
        evaluator.names = row
        return evaluator.eval(text, previously_parsed=body)

    def difficulty(row: Values) -> float | None:
        try:
            return _finite(float(evaluate(row)))
        except Exception:  # a value that is missing, a root of what is below 0, a division by 0, a number too large
            return None

    try:
        # tried once with plausible values, so that a formula that no row can have fails before the run, not in it
        evaluate({name: 0.5 if name in known else None for name in NAMES})
    except (ArithmeticError, ValueError):  # log(0) now, but not for every row
        pass
    except RecursionError:
        raise _too_deep() from None
    except Exception as error:  # wrong whatever the row, such as sqrt(1, 2)
        raise JobError(f"{KEY}: {_one_line(error)}; {_allowed()}") from None
    return difficulty


def _parse(text: str) -> ast.Expression:
    try:
        return ast.parse(text.strip(), KEY, "eval")
    except (SyntaxError, ValueError) as error:
        told = error.msg if isinstance(error, SyntaxError) else error
        raise JobError(f"{KEY}: no formula: {_one_line(told)}; write one such as mean(surprisal, effort)") from None
    except (RecursionError, MemoryError):
        raise _too_deep() from None


def _require_arithmetic(tree: ast.Expression) -> None:
    """Raise JobError for anything but numbers, names, operators and calls of the known functions."""
    for node in ast.walk(tree):
        number = not isinstance(node, ast.Constant) or type(node.value) in (int, float)
        if not isinstance(node, ALLOWED) or not number:
            raise JobError(f"{KEY}: got {_show(node)}, which is no arithmetic; {_allowed()}")
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
                raise JobError(f"{KEY}: unknown function {_show(node.func)}; {_allowed()}")
            if node.keywords:
                raise JobError(f"{KEY}: {_show(node)} names an argument; give it by its place")


def _require_values(tree: ast.Expression, known: set[str]) -> None:
    """Raise JobError for a name that does not exist, or that no row will have where the formula cannot do without."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    functions = {id(call.func) for call in calls}
    left_out = {id(value) for call in calls if _show(call.func) == "mean" for value in call.args}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in functions]
    for node in names:
        if node.id not in NAMES:
            raise JobError(f"{KEY}: unknown name {node.id[:80]!r} (known: {', '.join(NAMES)})")
        # under mean() a measure that is missing is left out; anywhere else it would make every difficulty None
        if node.id not in known and id(node) not in left_out:
            told = f"{KEY}: no row of this job has {node.id}, which needs {NEEDS[node.id]}"
            raise JobError(f"{told}; set that, or let mean() leave it out, as in mean({node.id}, effort)")
    used = {node.id for node in names}
    if used and not used & known:
        raise JobError(f"{KEY}: no row of this job has {', '.join(sorted(used))} (it has: {', '.join(sorted(known))})")


def _evaluator() -> "SimpleEval":
    """Arithmetic alone: no attributes, subscripts, texts or loops; powers are of floats: bounded, never complex."""
    from simpleeval import DEFAULT_OPERATORS, SimpleEval

    operators = {kind: DEFAULT_OPERATORS[kind] for kind in OPERATORS} | {ast.Pow: math.pow}
    evaluator = SimpleEval(operators=operators, functions=dict(FUNCTIONS), names={})
    evaluator.nodes = {kind: handler for kind, handler in evaluator.nodes.items() if kind in NODES}
    return evaluator


def _mean_of_known(*given: float | None) -> float | None:
    known = [value for value in given if value is not None]
    return sum(known) / len(known) if known else None


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "mean": _mean_of_known,
    "min": min,
    "max": max,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "abs": abs,
}


def _allowed() -> str:
    return f"use numbers, names, + - * / **, and {', '.join(FUNCTIONS)}"


def _show(node: ast.AST) -> str:
    return ast.unparse(node)[:80] if isinstance(node, ast.expr) else type(node).__name__


def _too_deep() -> JobError:
    return JobError(f"{KEY}: nested too deeply; write a shorter formula")


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:200]


def _mean(array: Array) -> float | None:
    """The mean of an array of any shape; None where it has no finite one."""
    if not array.size:
        return None
    with np.errstate(invalid="ignore"):  # of inf and -inf
        return _finite(float(np.mean(array, dtype=np.float64)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _saturate(value: float | None) -> float | None:
    """From [0, inf) to [0, 1); below 0 lies only what rounding made of it."""
    return None if value is None else 1.0 - math.exp(-max(value, 0.0))


def _complement(share: float | None) -> float | None:
    return None if share is None else min(max(1.0 - share, 0.0), 1.0)
