"""Networks that begin from published transformers weights (Dream, LLaDA, Qwen, Llama):
opening, running, exporting them."""
