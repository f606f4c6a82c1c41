from toy_fixtures import forge, quick, straight

__all__ = ["forge", "quick", "straight"]
