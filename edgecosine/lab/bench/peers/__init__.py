"""EdgeCoSine beside llama.cpp and transformers: the same model file, prompts and cores."""
