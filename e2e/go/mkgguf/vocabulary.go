package main

import (
	"fmt"
	"math/rand/v2"
)

const (
	tokenUnknown = 0
	tokenBegin   = 1
	tokenEnd     = 2
)

// Token types of a SentencePiece vocabulary.
const (
	kindNormal  = 1
	kindUnknown = 2
	kindControl = 3
	kindByte    = 6
)

// wordStart is how SentencePiece spells the space before a word.
const wordStart = "\u2581"

// vocabulary is a SentencePiece-like token list: three special tokens, one token per byte (so that
// any prompt can be encoded), characters, and made-up words up to the wanted size.
type vocabulary struct {
	tokens    []string
	scores    []float32 // which merge the tokenizer prefers: the highest
	types     []int32
	firstWord int
	known     map[string]bool
}

func newVocabulary(rng *rand.Rand, words int) *vocabulary {
	v := &vocabulary{known: map[string]bool{}}
	v.add("<unk>", 0, kindUnknown)
	v.add("<s>", 0, kindControl)
	v.add("</s>", 0, kindControl)
	for b := range 256 {
		v.add(fmt.Sprintf("<0x%02X>", b), 0, kindByte)
	}
	v.firstWord = len(v.tokens)
	for _, c := range "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()-" {
		v.addWord(string(c))
	}
	v.addWord(wordStart)
	for len(v.tokens) < v.firstWord+words {
		v.addWord(wordStart + pseudoWord(rng))
	}
	return v
}

func (v *vocabulary) addWord(s string) {
	if v.known[s] {
		return
	}
	v.known[s] = true
	v.add(s, -float32(len(v.known)), kindNormal)
}

func (v *vocabulary) add(s string, score float32, kind int32) {
	v.tokens = append(v.tokens, s)
	v.scores = append(v.scores, score)
	v.types = append(v.types, kind)
}

// pseudoWord is one to three syllables of a consonant and a vowel.
func pseudoWord(rng *rand.Rand) string {
	const consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
	var w []byte
	for range 1 + rng.IntN(3) {
		w = append(w, consonants[rng.IntN(len(consonants))], vowels[rng.IntN(len(vowels))])
	}
	return string(w)
}
