"""The same losses inside transformers' Trainer, and TRL's trainers, which are made of it: one method.

StudentTrainer(model, TrainingArguments(..., remove_unused_columns=False), train_dataset=load_rows(DATASET),
               data_collator=partial(collate, pad_token_id=0)).train()
"""

from typing import Any

from train import Loss, read_targets, topk_tail
from transformers import Trainer


class StudentTrainer(Trainer):
    """Learns the teacher's kept distribution in place of its text."""

    loss: Loss = staticmethod(topk_tail)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = 0) -> Any:
        where, targets = read_targets(inputs)
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        values = self.loss(outputs.logits[where].float(), targets)
        # the trainer counts the labels of all batches that make one step, and adds their losses up
        value = values.sum() / (num_items_in_batch or max(1, len(values)))
        return (value, outputs) if return_outputs else value
