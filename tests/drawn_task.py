"""The small task with a picture: a scenario draws its numbers, one as a width and one as a red."""

from conftest import SCHEMA

DRAWN = SCHEMA.replace(
    "class Answer(",
    """    def draw(self):
        from PIL import Image

        image = Image.new("RGB", (8 + self.a, 8))
        image.putpixel((0, 0), (self.b % 256, 0, 0))
        return image


class Answer(""",
)
USER = "Look:\n{% image scenario.draw() %}\nAdd its width less 8 and its red."
