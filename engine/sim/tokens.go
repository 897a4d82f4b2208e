package sim

import (
	"errors"
	"net/http"
)

// tokenCounts are the paths on which the tokens of a prompt are counted, and what the count is called there. Such a call needs
// no slot and takes no time. It is no inference request: Stats do not count it.
var tokenCounts = map[string]func(n int) object{
	"POST /tokenize": func(n int) object { // as vLLM; the tokens are numbered
		tokens := make([]int, n)
		for i := range tokens {
			tokens[i] = i
		}
		return object{"count": n, "max_model_len": maxOutput, "tokens": tokens}
	},
	"POST /v1/messages/count_tokens":  func(n int) object { return object{"input_tokens": n} },
	"POST /v1/responses/input_tokens": func(n int) object { return object{"object": "response.input_tokens", "input_tokens": n} },
}

func (s *Engine) countTokens(answer func(n int) object, anthropic bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, err := endpoint{}.read(w, r)
		if err == nil {
			if _, ok := s.modelNamed(b.Model); !ok {
				err = s.unknownModel(b.Model, r.URL.Path)
			}
		}
		if refusal, ok := errors.AsType[*apiError](err); ok {
			refusal.write(w, anthropic)
			return
		}
		_, n, _ := hashWords(b.prompt(), 0)
		writeJSON(w, http.StatusOK, answer(n))
	}
}
