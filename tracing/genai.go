package tracing

import (
	"strings"

	"go.opentelemetry.io/otel/attribute"

	"github.com/pulley-lb/pulley/api"
)

// The attributes of generative AI, by OpenTelemetry's semantic conventions 1.41.0, the last version that has them
// (https://github.com/open-telemetry/semantic-conventions/blob/v1.41.0/docs/gen-ai/gen-ai-spans.md, status: development). Since
// then they are in a repository of their own, open-telemetry/semantic-conventions-genai, which has no release yet. The prompts and
// answers that they also describe are not recorded.
const (
	GenAIOperation    = attribute.Key("gen_ai.operation.name")
	GenAIProvider     = attribute.Key("gen_ai.provider.name")
	GenAIModel        = attribute.Key("gen_ai.request.model")
	GenAIMaxTokens    = attribute.Key("gen_ai.request.max_tokens")
	GenAIStream       = attribute.Key("gen_ai.request.stream")
	GenAIInputTokens  = attribute.Key("gen_ai.usage.input_tokens")
	GenAIOutputTokens = attribute.Key("gen_ai.usage.output_tokens")
	GenAIFirstChunk   = attribute.Key("gen_ai.response.time_to_first_chunk") // seconds
)

// Operation is the value of GenAIOperation for a path, with or without a query; "" if there is none, such as for rerank.
func Operation(path string) string {
	path, _, _ = strings.Cut(path, "?")
	switch {
	case api.Cheap(path):
		return ""
	case strings.HasSuffix(path, "/chat"): // Ollama's, LM Studio's
		return "chat"
	case strings.HasSuffix(path, "/embed"), strings.HasSuffix(path, "/embedding"):
		return "embeddings"
	case strings.HasSuffix(path, "/generate"), strings.HasSuffix(path, "/generate_stream"), strings.HasSuffix(path, "/completion"), strings.HasSuffix(path, "/infill"):
		return "text_completion"
	}
	switch api.Of(path) {
	case api.Chat, api.Responses, api.Messages:
		return "chat"
	case api.Completions:
		return "text_completion"
	case api.Embeddings:
		return "embeddings"
	}
	return ""
}
