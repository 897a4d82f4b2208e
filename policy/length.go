package policy

import (
	"encoding/binary"
	"math"
	"slices"
)

// A Text describes a request's body as far as its number of tokens depends on it. The zero value is an empty body.
type Text struct {
	ASCII  int // bytes
	Narrow int // letters of two bytes: Latin with accents, Greek, Cyrillic, Arabic and the like
	Indic  int // letters of the scripts of India and South-East Asia
	Wide   int // other letters: Chinese, Japanese, Korean, symbols
	Media  int // images, sounds and the like in base64
}

// TextOf reads a body in JSON, in which a letter is itself or an escape. A long run of base64 counts as one piece of media; where
// it begins and ends is not exact.
func TextOf(body []byte) (t Text) {
	run := 0 // bytes that may be base64: none of them is a space, a quote, or another one below '+'
	for i := 0; i < len(body); {
		if i+8 <= len(body) {
			const ones, highs = 0x0101010101010101, 0x8080808080808080
			x := binary.LittleEndian.Uint64(body[i:])
			slash := x ^ ones*'\\'
			if x&highs == 0 && (slash-ones)&^slash&highs == 0 { // eight letters of ASCII, and no escape
				if run += 8; (x-ones*'+')&highs != 0 {
					t.add(run)
					run = 0
				}
				i += 8
				continue
			}
		}
		c, n := body[i], 1
		if c >= '+' && c < 0x80 && c != '\\' {
			run++
			i++
			continue
		}
		t.add(run)
		run = 0
		switch {
		case c == '\\' && i+5 < len(body) && body[i+1] == 'u':
			t.letter(escaped(body[i+2 : i+6]))
			n = 6
		case c < 0x80:
			t.ASCII++
		case c >= 0xf0:
			t.Wide++
			n = 4
		case c >= 0xe0 && i+1 < len(body):
			t.letter(int(c&0x0f)<<12 | int(body[i+1]&0x3f)<<6)
			n = 3
		case c >= 0xc0:
			t.Narrow++
			n = 2
		}
		i += n
	}
	t.add(run)
	return t
}

// mediaRun is the length from which on a run of base64 counts as media.
const mediaRun = 2048

func (t *Text) add(run int) {
	if run < mediaRun {
		t.ASCII += run
	} else {
		t.Media++
	}
}

func (t *Text) letter(r int) {
	switch {
	case r < 0x80:
		t.ASCII++
	case r < 0x800:
		t.Narrow++
	case r < 0x1800:
		t.Indic++
	case r >= 0xdc00 && r < 0xe000: // the second half of a letter
	default:
		t.Wide++
	}
}

// escaped reads four hexadecimal digits.
func escaped(b []byte) (n int) {
	for _, c := range b {
		n *= 16
		switch {
		case c >= '0' && c <= '9':
			n += int(c - '0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			n += int(c|0x20-'a') + 10
		}
	}
	return n
}

// Tokens estimates how many tokens the prompts of one model have at most, by those of earlier requests: languages differ by a
// factor of ten in letters per token, and so do models. Texts are told apart by the script of most of their letters that
// are not ASCII, and by how many those are. It is not safe for concurrent use; the zero value knows nothing of the model.
type Tokens struct {
	kinds [scripts * shares]perLetter
}

const (
	scripts = 3
	shares  = 6

	// fewLetters is the size from which on a text says how many tokens a letter takes. Shorter ones have more tokens for
	// what surrounds them.
	fewLetters = 400

	// perMedia is what a piece of media is taken for.
	perMedia = 1000

	tokensDecay = 1. / 16  // of mean and spread
	mostDecay   = 1. / 256 // of the most
	spreads     = 3        // above the mean
	tokenMargin = 1.02
)

// perLetter is what was seen of one kind of text.
type perLetter struct {
	mean, spread, most float64 // tokens per letter; mean 0: nothing was seen
}

// kind returns the kind of a text, its letters, and tokens per letter where nothing was seen: as of the tokenizers of
// current models, rounded up.
func (t Text) kind() (kind int, letters, guess float64) {
	counts := [scripts]int{t.Narrow, t.Indic, t.Wide}
	others := t.Narrow + t.Indic + t.Wide
	letters = float64(t.ASCII + others)
	script := slices.Index(counts[:], slices.Max(counts[:]))
	share := 0
	if others > 0 {
		share = min(int(float64(others)/letters*(shares-1))+1, shares-1)
	}
	if float64(others) < 0.02*letters {
		script, share = 0, 0
	}
	guess = (float64(t.ASCII)*0.25 + float64(t.Narrow)*0.5 + float64(t.Indic+t.Wide)) / max(letters, 1)
	return script*shares + share, letters, guess
}

// Most returns how many tokens a prompt has at most, as far as that can be said.
func (e *Tokens) Most(t Text) int {
	kind, letters, guess := t.kind()
	per := guess
	if k := &e.kinds[kind]; k.mean > 0 {
		per = tokenMargin * max(k.mean+spreads*k.spread, k.most)
	}
	return int(math.Ceil(per*letters)) + perMedia*t.Media
}

// Add takes in that a prompt had so many tokens.
func (e *Tokens) Add(t Text, tokens int) {
	if kind, letters, _ := t.kind(); tokens > 0 && letters >= fewLetters && t.Media == 0 {
		e.kinds[kind].add(float64(tokens) / letters)
	}
}

// AddOver takes in that a prompt had more than so many tokens.
func (e *Tokens) AddOver(t Text, tokens int) {
	if tokens >= e.Most(t) {
		e.Add(t, tokens+1+tokens/16)
	}
}

func (k *perLetter) add(per float64) {
	if k.mean == 0 {
		*k = perLetter{mean: per, spread: per / 16, most: per}
		return
	}
	k.spread += tokensDecay * (math.Abs(per-k.mean) - k.spread)
	k.mean += tokensDecay * (per - k.mean)
	k.most = max(per, k.most+mostDecay*(k.mean-k.most))
}

// AnyLength is the length of a context that is not known.
const AnyLength = 1 << 53

// LengthFor returns the smallest of the lengths of contexts, in ascending order, that a request of so many tokens fits into;
// the largest if it fits into none. least says that every worker of the pool has at least as much.
func LengthFor(lengths []int64, tokens int64) (length int64, least bool) {
	if len(lengths) == 0 {
		return 0, true
	}
	i, _ := slices.BinarySearch(lengths, tokens)
	i = min(i, len(lengths)-1)
	return lengths[i], i == 0
}
