"""What a trained model does: faces from attributes, faces changed, attributes inferred; photographs in, pictures out.

What this room imports: `errors`, `models`, `data`, `training`.
"""
