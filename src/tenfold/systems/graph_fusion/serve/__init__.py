"""One encoder, served alone: answers, reasons, new facts, and files for others."""
