package api_test

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/pulley-lb/pulley/api"
)

func TestWhyNotJSON(t *testing.T) {
	for body, want := range map[string]string{
		"x":                    "invalid character 'x' at start of value",
		`{"a":{"b":1`:          "it ends too early",
		`{"a":{"b":1}}`:        "/a: a JSON object is not possible here",
		`{"a":[]}`:             "/a: a JSON array is not possible here",
		`{"a":1}`:              "/a: a JSON number is not possible here",
		`{"a":"x","a":"y"}`:    `duplicate object member name "a"`,
		"[]":                   "/: a JSON array is not possible here",
		"{\"a\":\"\xff\"}":     `invalid UTF-8 within "/a" after offset 6`,
		`{"a":"x"} y`:          "invalid character 'y' after top-level value",
		strings.Repeat("[", 1): "/: a JSON array is not possible here",
	} {
		var into struct {
			A string `json:"a"`
		}
		err := json.Unmarshal([]byte(body), &into)
		if err == nil {
			t.Errorf("%s is accepted", body)
		} else if got := api.WhyNotJSON(err); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
}
