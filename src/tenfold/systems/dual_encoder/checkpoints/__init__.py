"""Official files of ViLT and DiDE, and transformers' ViLT, in and out."""
