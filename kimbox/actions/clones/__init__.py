"""Templates and clones: template.py makes the template of a box, clone.py starts clones of it."""
