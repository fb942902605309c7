"""The cascade shown live: two real models of different skill, questions with checkable answers, and what each choice costs."""
