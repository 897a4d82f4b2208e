package api_test

import (
	"testing"

	"github.com/pulley-lb/pulley/api"
)

func TestEngineDied(t *testing.T) {
	for body, want := range map[string]bool{
		`{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.","code":500}}`:                                       true,
		`{"object":"error","message":"Background loop has errored already.","type":"InternalServerError"}`:                                                      true,
		`{"error":"model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, check ollama server logs for details"}`: true,
		`{"error":{"message":"Internal Server Error"}}`: false,
		``: false,
	} {
		if api.EngineDied([]byte(body)) != want {
			t.Errorf("%s: want %t", body, want)
		}
	}
}
