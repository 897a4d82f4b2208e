package api

import "strings"

// API is one of the APIs that clients and engines speak. It decides what an error looks like, how a
// stream ends, and where a body has its conversation.
type API string

const (
	Chat        API = "chat"        // /v1/chat/completions
	Completions API = "completions" // /v1/completions
	Embeddings  API = "embeddings"  // /v1/embeddings
	Responses   API = "responses"   // /v1/responses
	Messages    API = "messages"    // Anthropic's /v1/messages
	OpenAI      API = "openai"      // any other path under /v1/: audio, images, rerank
	Other       API = "other"       // any other path; the form of its streams is unknown
)

// suffixes are the ends of the paths of the APIs that are identified by their path alone. Of two
// that match, the longer one comes first.
var suffixes = []struct {
	suffix string
	api    API
}{
	{"/chat/completions", Chat}, {"/completions", Completions}, {"/embeddings", Embeddings}, {"/responses", Responses}, {"/messages", Messages},
}

// Of returns the API that a path, with or without a query, belongs to.
func Of(path string) API {
	path, _, _ = strings.Cut(path, "?")
	for _, s := range suffixes {
		if strings.HasSuffix(path, s.suffix) {
			return s.api
		}
	}
	if strings.HasPrefix(path, "/v1/") {
		return OpenAI
	}
	return Other
}

// Suffix is the end of the API's path, after /v1; "" for OpenAI and Other.
func (a API) Suffix() string {
	for _, s := range suffixes {
		if s.api == a {
			return s.suffix
		}
	}
	return ""
}

// completes reports whether the API is one of OpenAI's two completions, whose streams end with
// [DONE].
func (a API) completes() bool { return a == Chat || a == Completions }

// hasLastEvent reports whether every stream of the API ends with a final event.
func (a API) hasLastEvent() bool { return a.completes() || a == Responses || a == Messages }

// openAIErrors reports whether an error in a stream of the API is an event with an OpenAI error
// object.
func (a API) openAIErrors() bool { return a.completes() || a == Embeddings || a == OpenAI }

// conversationField is the name of the body's member that holds the conversation.
func (a API) conversationField() string {
	if a == Responses {
		return "input"
	}
	return "messages"
}
