package policy_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/policy"
)

func TestTextOf(t *testing.T) {
	media := base64.StdEncoding.EncodeToString(make([]byte, 6000))
	for body, want := range map[string]policy.Text{
		``:                             {},
		`{"a":"b c"}`:                  {ASCII: 11},
		`"é"`:                          {ASCII: 2, Narrow: 1},
		`"привет"`:                     {ASCII: 2, Narrow: 6},
		`"\u043f\u0440"`:               {ASCII: 2, Narrow: 2},
		`"\u0041\n"`:                   {ASCII: 5},
		`"नम"`:                         {ASCII: 2, Indic: 2},
		`"\u0928\u092E"`:               {ASCII: 2, Indic: 2},
		`"天地"`:                         {ASCII: 2, Wide: 2},
		`"\u5929"`:                     {ASCII: 2, Wide: 1},
		`"😀"`:                          {ASCII: 2, Wide: 1},
		`"\ud83d\ude00"`:               {ASCII: 2, Wide: 1},
		"        " + media + `" "x"  `: {ASCII: 15, Media: 1},
		"\\u12":                        {ASCII: 4},
		"\xe5":                         {Narrow: 1},
	} {
		if got := policy.TextOf([]byte(body)); got != want {
			t.Errorf("%.40q: %+v, want %+v", body, got, want)
		}
	}
}

// Whatever the language and the tokenizer, the estimate is soon above the truth, and not far above.
func TestTokensAreLearned(t *testing.T) {
	texts := map[string]string{
		"English": "to be or not to be, that is the question ", "Russian": "быть или не быть, вот в чём вопрос ",
		"Chinese": "生存还是毁灭，这是一个值得考虑的问题", "Hindi": "होना या न होना, यही सवाल है ", "both": "das heißt 生存 or 毁灭 ",
	}
	for language, text := range texts {
		for _, per := range []float64{0.15, 0.3, 0.8, 1.6, 2.5} {
			var e policy.Tokens
			truth := func(letters int, noise float64) int { return 8 + int(float64(letters)*per*(1+noise)) }
			for i := range 60 {
				body := strings.Repeat(text, 20+i)
				is, tokens := policy.TextOf([]byte(body)), truth(len([]rune(body)), 0.05*float64(i%5-2))
				if most := e.Most(is); i >= 10 && (most < tokens || most > tokens*3/2) {
					t.Errorf("%s at %.2f tokens per letter: %d after %d prompts, it has %d", language, per, most, i, tokens)
				}
				e.Add(is, tokens)
			}
		}
	}
	var e policy.Tokens
	is := policy.TextOf([]byte(strings.Repeat("x ", 4000)))
	e.AddOver(is, 6000)
	if got := e.Most(is); got <= 6000 {
		t.Errorf("%d tokens after an engine has refused it with 6000", got)
	}
	e.AddOver(is, 100)
	if got := e.Most(is); got < 6000 || got > 8000 {
		t.Errorf("%d tokens after a refusal that says nothing", got)
	}
}

func TestLengthFor(t *testing.T) {
	lengths := []int64{4000, 8000, policy.AnyLength}
	for tokens, want := range map[int64]string{1: "4000 true", 4000: "4000 true", 4001: "8000 false", 8001: "9007199254740992 false"} {
		n, least := policy.LengthFor(lengths, tokens)
		if got := fmt.Sprint(n, least); got != want {
			t.Errorf("%d tokens: %s, want %s", tokens, got, want)
		}
	}
	if n, least := policy.LengthFor(lengths[:2], 9000); n != 8000 || least {
		t.Errorf("what fits nowhere: %d %v, want the largest", n, least)
	}
	if _, least := policy.LengthFor(nil, 9000); !least {
		t.Error("a pool of unknown lengths has lanes for long requests")
	}
}

func BenchmarkTextOf(b *testing.B) {
	body := []byte(strings.Repeat("to be or not to be, that is the question ", 400))
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		policy.TextOf(body)
	}
}
