"""The demo teacher: a small Qwen3 that ships inside the package, and all that made it.

`model/` is the shipped model, `train` makes it, `evaluate` measures it with the factory itself, `card`
writes its model card. Nothing else imports this package: `factory.teachers.demo` knows the folder and no more.
"""
