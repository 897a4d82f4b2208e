package sim

// CountTokens is the number of tokens in the texts.
func CountTokens(texts ...string) int {
	_, n, _ := hashWords(texts, 0)
	return n
}
