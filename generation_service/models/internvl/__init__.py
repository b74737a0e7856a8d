"""InternVL2 and InternVL2.5 from their original folders, and InternVL folders in transformers' own layout."""
