"""The engineer's records; their home is beside the templates that show them."""

from prompts.records import PARENTS, Context, Exhibit, Foreign, Idea, Message, Operator, PartExhibit, Plan

__all__ = ["PARENTS", "Context", "Exhibit", "Foreign", "Idea", "Message", "Operator", "PartExhibit", "Plan"]
