"""Refusals: datasets and options that a trainer would take, and learn the wrong thing from; each with its reason."""

from factory.publish.exports.asked import Asked
from factory.publish.exports.source import Source


def nothing(source: Source, asked: Asked) -> str | None:
    """A format that every dataset fits."""
    return None


def refuse_distributions(source: Source, asked: Asked) -> str | None:
    """Formats that train on distributions at all."""
    signals = source.signals
    if not signals.top_k:
        return "it trains on distributions, and this dataset keeps none ([signals] top_k = 0); a text format takes it"
    if asked.k is not None and signals.keep != "top_k":
        return f'--k cuts a top-k set, and this dataset has keep = "{signals.keep}"; leave it out'
    if asked.k is not None and asked.k > signals.top_k:
        return f"--k {asked.k}: the dataset keeps {signals.top_k} ids of a position; give at most {signals.top_k}"
    return None


def refuse_draws(source: Source, asked: Asked) -> str | None:
    """Formats whose losses need the likeliest ids."""
    if told := refuse_distributions(source, asked):
        return told
    if source.signals.keep == "sampled":
        return (
            'its loss needs the likeliest ids, and keep = "sampled" has random draws: a student would be sharpened '
            "towards them; `--to tinker` trains on draws without bias"
        )
    return None


def refuse_ragged(source: Source, asked: Asked) -> str | None:
    """Formats whose losses need k likeliest ids at each position."""
    if told := refuse_draws(source, asked):
        return told
    if source.signals.keep == "top_p":
        return (
            'it wants k ids at every position, and keep = "top_p" has fewer at some: what fills them up would count as '
            'mass of the student; `--to tinker` takes them, or run with keep = "top_k"'
        )
    return None


def refuse_gaps(source: Source) -> str | None:
    """Formats without a loss of their own for tokens whose distribution is not kept."""
    if source.signals.min_entropy > 0:
        return (
            "it trains on distributions alone, and min_entropy has dropped those of the sure tokens: a student would "
            "never be taught them; `--to axolotl-kd` teaches the rest by cross-entropy"
        )
    return None


def refuse_one_id(source: Source, asked: Asked) -> str | None:
    """Renormalised distributions over one id, which say nothing."""
    if (asked.k or source.signals.top_k) == 1:
        return "over one id a renormalised distribution is always 1, and teaches nothing; keep 2 ids or more"
    return None


def refuse_states(source: Source, asked: Asked) -> str | None:
    """Formats that train a draft model on hidden states."""
    signals = source.signals
    if not signals.layers:
        return "it trains on hidden states, and this dataset keeps none ([signals] hidden_layers = [])"
    if signals.hidden_positions != "all":
        return (
            f'it needs the states of every token, and hidden_positions = "{signals.hidden_positions}" leaves some out; '
            'run with hidden_positions = "all"'
        )
    last = last_layer(source)
    if last is None:
        return (
            "it needs the last layer's states, and which layer is the last is told neither by the manifest nor the job"
        )
    if last not in signals.layers:
        return f"it needs the last layer's states ({last}), and layers {list(signals.layers)} are kept; add -1"
    if len(signals.layers) < 2:
        return "it needs states of inner layers beside the last one's; run with hidden_layers = [2, n // 2, n - 3, -1]"
    return None


def refuse_chat(source: Source, asked: Asked) -> str | None:
    """Formats of chat messages, for transcripts that are none; told by the first row, see `chat.messages_of`."""
    if asked.reasoning == "content" and source.markers is None:
        return "--reasoning content: the teacher has no markers to put around a reasoning; leave it out"
    return None


def refuse_untold_tools(source: Source) -> str | None:
    """TRL's trainers, whose collators of pictures hand no tools to a chat template."""
    if source.signals.images and source.signals.tools:
        return (
            "TRL shows a student no tools where it shows pictures, so it would learn to call what it never saw; "
            "`--to messages` carries both"
        )
    return None


def last_layer(source: Source) -> int | None:
    """The number of the teacher's last layer; None where nothing tells it."""
    if isinstance(layers := source.details.get("layers"), int):
        return layers
    asked = ((source.manifest.get("job") or {}).get("signals") or {}).get("hidden_layers") or []
    # as the job wrote them, in the same order as resolved
    if -1 in asked and len(asked) == len(source.signals.layers):
        return source.signals.layers[asked.index(-1)]
    return None
