"""Problems with right answers: HumanEval, MBPP, GSM8K, MATH: prompts, extraction, judging, pass@k."""
