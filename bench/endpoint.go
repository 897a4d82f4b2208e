package bench

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/pulley-lb/pulley/api"
)

// Endpoints are the APIs that the generator speaks, in the order of the help texts.
var Endpoints = []api.API{api.Chat, api.Completions, api.Embeddings, api.Responses, api.Messages}

// resolve completes the path of a base URL: /, /v1, /prefix/v1 or the endpoint's own.
func resolve(endpoint api.API, path string) string {
	suffix := endpoint.Suffix()
	path = strings.TrimRight(path, "/")
	switch {
	case suffix != "" && strings.HasSuffix(path, suffix):
		return path
	case strings.HasSuffix(path, "/v1"):
		return path + suffix
	default:
		return path + "/v1" + suffix
	}
}

// eventKind is what a server-sent event means for the measurement.
type eventKind int

const (
	eventOther   eventKind = iota // roles, usage, pings
	eventContent                  // a piece of the answer
	eventDone                     // the answer is complete
	eventError                    // the server reports that the answer failed
)

// judge returns what an event means. It searches for a few fields by their bytes and parses no JSON: an unescaped
// "key": cannot occur inside a JSON string.
func judge(endpoint api.API, name, data []byte) eventKind {
	switch endpoint {
	case api.Responses:
		return judgeResponses(typeOf(name, data), data)
	case api.Messages:
		return judgeMessages(typeOf(name, data), data)
	default:
		return judgeChunk(data)
	}
}

var chunkText = [][]byte{
	[]byte(`"content"`), []byte(`"text"`), []byte(`"reasoning_content"`), []byte(`"reasoning"`),
	[]byte(`"refusal"`), []byte(`"arguments"`),
}

func judgeChunk(data []byte) eventKind {
	for _, key := range chunkText {
		if hasText(data, key) {
			return eventContent
		}
	}
	switch {
	case bytes.Equal(data, []byte("[DONE]")):
		return eventDone
	case isErrorBody(data):
		return eventError
	case callsTool(data):
		return eventContent
	}
	return eventOther
}

// callsTool reports whether the list of tool calls has an element.
func callsTool(data []byte) bool {
	list := field(data, []byte(`"tool_calls"`))
	if len(list) == 0 || list[0] != '[' {
		return false
	}
	return !bytes.HasPrefix(bytes.TrimLeft(list[1:], " \t\r\n"), []byte("]"))
}

func judgeResponses(kind string, data []byte) eventKind {
	switch {
	case kind == "response.completed", kind == "response.incomplete":
		return eventDone
	case kind == "response.failed", kind == "response.cancelled", kind == "error":
		return eventError
	case strings.HasSuffix(kind, ".delta") && hasText(data, []byte(`"delta"`)):
		return eventContent
	}
	return eventOther
}

var blockText = [][]byte{[]byte(`"text"`), []byte(`"partial_json"`), []byte(`"thinking"`)}

func judgeMessages(kind string, data []byte) eventKind {
	switch kind {
	case "message_stop":
		return eventDone
	case "error":
		return eventError
	case "content_block_delta":
		if slices.ContainsFunc(blockText, func(key []byte) bool { return hasText(data, key) }) {
			return eventContent
		}
	}
	return eventOther
}

// typeOf is the event's name, or the "type" in its data where the server names no events.
func typeOf(name, data []byte) string {
	if len(name) > 0 {
		return string(name)
	}
	value := field(data, []byte(`"type"`))
	if len(value) < 2 || value[0] != '"' {
		return ""
	}
	text, _, _ := bytes.Cut(value[1:], []byte(`"`))
	return string(text)
}

// hasText reports whether any field of that name (given with its quotes) holds a string that is not empty.
func hasText(data, key []byte) bool {
	for {
		value := field(data, key)
		if value == nil {
			return false
		}
		if len(value) > 1 && value[0] == '"' && value[1] != '"' {
			return true
		}
		data = value
	}
}

// field returns the bytes from the value of the first field of that name (given with its quotes), nil without one.
func field(data, key []byte) []byte {
	for {
		i := bytes.Index(data, key)
		if i < 0 {
			return nil
		}
		data = data[i+len(key):]
		rest := bytes.TrimLeft(data, " \t\r\n")
		if len(rest) == 0 || rest[0] != ':' {
			continue
		}
		if value := bytes.TrimLeft(rest[1:], " \t\r\n"); len(value) > 0 {
			return value
		}
	}
}

// isErrorBody reports whether a JSON object has a top-level error that is not null.
func isErrorBody(data []byte) bool {
	if value := field(data, []byte(`"error"`)); len(value) == 0 || (value[0] != '{' && value[0] != '"') {
		return false
	}
	var body struct{ Error json.RawMessage }
	return json.Unmarshal(data, &body) == nil && len(body.Error) > 0
}

// usage is the token usage that a server reports, under either family of names.
type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	InputTokens      int `json:"input_tokens"`
	OutputTokens     int `json:"output_tokens"`
}

func (u usage) input() int  { return max(u.PromptTokens, u.InputTokens) }
func (u usage) output() int { return max(u.CompletionTokens, u.OutputTokens) }

// merge adds the usage in data, if there is one, to what was known: Anthropic reports it in two parts.
func (u *usage) merge(data []byte) (found bool) {
	for {
		data = field(data, []byte(`"usage"`))
		if data == nil {
			return found
		}
		if data[0] == '{' && json.NewDecoder(bytes.NewReader(data)).Decode(u) == nil {
			found = true
		}
	}
}

// endedByModel reports whether the finish reason in data says that the model stopped before the requested length.
func endedByModel(data []byte) bool {
	for _, key := range [][]byte{[]byte(`"finish_reason"`), []byte(`"stop_reason"`)} {
		for rest := field(data, key); rest != nil; rest = field(rest, key) {
			if rest[0] == '"' && !bytes.HasPrefix(rest, []byte(`"length"`)) && !bytes.HasPrefix(rest, []byte(`"max_tokens"`)) {
				return true
			}
		}
	}
	return bytes.HasPrefix(field(data, []byte(`"status"`)), []byte(`"completed"`)) // Responses
}
