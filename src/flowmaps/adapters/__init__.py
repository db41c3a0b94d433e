"""Other libraries' models, as flow maps. Each adapter is a module of its own, imported by name, and needs its extra."""
