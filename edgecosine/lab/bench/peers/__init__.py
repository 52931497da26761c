"""Compares EdgeCoSine with its peers, llama.cpp and transformers: same model, prompts and cores."""
