"""The built-in teacher `demo`: a small trained Qwen3 that lies inside the package, in factory/demo_teacher/model.

It answers the built-in tasks and nothing else; its model card says how well. All that made it: factory/demo_teacher.
"""

from pathlib import Path

from factory.errors import TeacherError

FOLDER = Path(__file__).parents[1] / "demo_teacher" / "model"


def demo_teacher() -> str:
    """Folder of the demo teacher. Raises TeacherError where this installation has none."""
    if not (FOLDER / "config.json").is_file():
        raise TeacherError(
            f"teacher.model 'demo': {FOLDER} has no config.json; install the package whole, or name another model"
        )
    return str(FOLDER)
