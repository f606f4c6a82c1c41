from toy_fixtures import quick

__all__ = ["quick"]
