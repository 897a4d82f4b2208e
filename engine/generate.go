package engine

import (
	"encoding/json"
	"strings"
)

// OneToken returns a request for one token of a model, in the API of a path that the engine has answered before, such as
// /v1/chat/completions or /api/generate. For embeddings and the like it is one short text. A path of another API, or none,
// becomes a chat. stream asks for a stream where the API has streams. The body is JSON, for a POST.
func OneToken(path, model string, stream bool) (at string, body []byte) {
	path, _, _ = strings.Cut(path, "?")
	type object map[string]any
	o := object{"model": model, "stream": stream}
	message := []object{{"role": "user", "content": "Hi"}}
	switch {
	case strings.HasSuffix(path, "/chat/completions"):
		o["messages"], o["max_tokens"] = message, 1
	case strings.HasSuffix(path, "/completions"), path == "/completion":
		o["prompt"], o["max_tokens"] = "Hi", 1
	case strings.HasSuffix(path, "/messages"):
		o["messages"], o["max_tokens"] = message, 1
	case strings.HasSuffix(path, "/responses"):
		o["input"], o["max_output_tokens"] = "Hi", 16 // the least that OpenAI's API allows
	case path == "/api/chat":
		o["messages"], o["options"] = message, object{"num_predict": 1}
	case path == "/api/generate":
		o["prompt"], o["options"] = "Hi", object{"num_predict": 1}
	case path == "/api/embed", strings.HasSuffix(path, "/embeddings"):
		delete(o, "stream")
		o["input"] = "Hi"
	case strings.HasSuffix(path, "/rerank"), strings.HasSuffix(path, "/score"):
		delete(o, "stream")
		o["query"], o["documents"] = "Hi", []string{"Hi"}
	default:
		path = "/v1/chat/completions"
		o["messages"], o["max_tokens"] = message, 1
	}
	body, err := json.Marshal(o)
	if err != nil {
		panic(err) // plain fields always encode
	}
	return path, body
}
