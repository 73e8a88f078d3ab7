"""Update rules as programs: a typed, bounded language whose programs are arrays. Start at `vocabulary.py`."""
