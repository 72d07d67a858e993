"""How many tokens a prompt's pictures take, for a plan: by the model's own processor, where it is on this machine."""

from pathlib import Path
from typing import Any

from factory.job.teacher import TeacherConfig
from factory.records import Prompt
from factory.teachers.data_urls import most_image_tokens, size_of
from factory.teachers.models import locate_model
from factory.teachers.tokens import Counter, ExactCounter


class PictureTokens:
    """Counts prompts with pictures for one teacher; `how` says how it has, and is empty before it has seen one."""

    def __init__(self, teacher: TeacherConfig) -> None:
        self.teacher = teacher
        self.how = ""
        self.processor: Any = None

    def prompt_ids(self, counter: Counter, prompt: Prompt) -> list[int]:
        """As many ids as the teacher would read; those of pictures stand for any."""
        if not prompt.images:
            return counter.prompt_ids(prompt.messages, prompt.tools)
        if not self.how:
            self._open()
        ids = counter.prompt_ids(prompt.messages, prompt.tools)
        if self.teacher.remote:
            return [*ids, *[ids[-1]] * sum(map(most_image_tokens, prompt.images))]
        if self.processor is None or not isinstance(counter, ExactCounter):
            return ids
        # a picture has one id of the template's own, in whose place its tokens come
        ids = counter.encoder.encode_prompt(prompt.messages, prompt.tools).ids
        sizes = [size_of(png)[::-1] for png in prompt.images]
        counts = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
        return [*ids, *[ids[-1]] * (sum(counts) - len(sizes))]

    def _open(self) -> None:
        if self.teacher.remote:
            self.how = "pictures taken at the most that an endpoint is known to count"
            return
        try:
            self.processor = _open_processor(self.teacher)
            self.how = "pictures counted with its own processor"
        except Exception as error:  # no transformers here, no such file, a processor that lacks something
            self.how = f"pictures not counted, their tokens come on top: no processor here ({type(error).__name__})"


def _open_processor(teacher: TeacherConfig) -> Any:
    """Raises whatever transformers does, and OSError where nothing of the model is on this machine."""
    from transformers import AutoProcessor

    names = {"revision": teacher.revision, "trust_remote_code": teacher.trust_remote_code}
    model = locate_model(teacher)
    processor = AutoProcessor.from_pretrained(model, local_files_only=not Path(model).is_dir(), **names)
    processor._get_num_multimodal_tokens  # noqa: B018  (few lack it: told now, not at the first picture)
    return processor
