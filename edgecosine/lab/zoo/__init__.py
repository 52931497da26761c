"""How the zoo is made: texts, training, distillation, evaluation, and the model card."""
