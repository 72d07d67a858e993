"""What a part of the chaos scripts counts: what was tried, how often, and how often it was survived."""

from dataclasses import dataclass, field


@dataclass
class Figures:
    """What was tried, how often, how often it was survived; and what went wrong where it was not."""

    what: str
    tried: int = 0
    survived: int = 0
    remark: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return self.survived == self.tried and not self.faults

    def row(self) -> str:
        """One row of the table."""
        return f"| {self.what} | {self.tried:,} | {self.survived:,} | {self.remark} |"

    def count(self, fault: str) -> None:
        """One more try; `fault` is empty where it was survived."""
        self.tried += 1
        if fault:
            self.faults.append(fault)
        else:
            self.survived += 1
