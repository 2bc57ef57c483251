"""Random heads in three dimensions, rendered as small colour pictures: what `make_heads.py` writes.

`assets.py` reads the mesh and its directions of change, `traits.py` draws all random numbers of one head, `body.py`
makes from them a coloured surface, `render.py` lights, projects and rasterises it.
"""
