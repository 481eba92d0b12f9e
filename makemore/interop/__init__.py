"""Export trained models to other programs' formats, one module per format."""
