package sim

import "strings"

// PromptHash is the hash from which an answer's tokens are derived: FNV-1a over the words of the texts, in order, each
// followed by a space. White space between words does not matter, nor does how words are spread over texts.
func PromptHash(texts ...string) uint64 {
	hash, _, _ := hashWords(texts, 0)
	return hash
}

// hashWords also returns the hash after every block words, unless block is 0.
func hashWords(texts []string, block int) (hash uint64, words int, blocks []uint64) {
	const offset, prime = 14695981039346656037, 1099511628211
	hash = offset
	for _, t := range texts {
		for word := range strings.FieldsSeq(t) {
			words++
			for i := range len(word) {
				hash = (hash ^ uint64(word[i])) * prime
			}
			hash = (hash ^ ' ') * prime
			if block > 0 && words%block == 0 {
				blocks = append(blocks, hash)
			}
		}
	}
	return hash, words, blocks
}

// Token is token i of an Engine's answer to the prompt with this hash: a word of five letters.
func Token(hash uint64, i int) string {
	return string(appendToken(nil, hash, i))
}

// Text is the first n tokens of an answer, separated by spaces.
func Text(hash uint64, n int) string {
	return string(appendTokens(nil, hash, 0, n))
}

// appendTokens appends the tokens from i until before n as they appear in the text: each except token 0 after a space.
func appendTokens(b []byte, hash uint64, i, n int) []byte {
	for ; i < n; i++ {
		if i > 0 {
			b = append(b, ' ')
		}
		b = appendToken(b, hash, i)
	}
	return b
}

// appendToken writes sixteen bits as alternating consonants and vowels, so that tokens are easy to
// distinguish and to pronounce.
func appendToken(b []byte, hash uint64, i int) []byte {
	const consonants, vowels = "bdfghjklmnprstvz", "aiou"
	x := mix(hash + uint64(i))
	return append(b, consonants[x&15], vowels[x>>4&3], consonants[x>>6&15], vowels[x>>10&3], consonants[x>>12&15])
}

// mix is the finaliser of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
