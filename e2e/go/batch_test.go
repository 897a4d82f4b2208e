package e2e

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

func TestBatch(t *testing.T) {
	s := setup(t)
	if !s.pulley {
		t.Skip("needs Pulley in front")
	}
	client, ctx := openai.NewClient(option.WithBaseURL(s.baseURL), option.WithAPIKey("unused")), t.Context()
	var input strings.Builder
	for i := range 10 {
		fmt.Fprintf(&input, `{"custom_id":"q%d","method":"POST","url":"/v1/chat/completions","body":{"model":%q,"max_tokens":3,"messages":[{"role":"user","content":"hello"}]}}`+"\n", i, s.model)
	}
	file, err := client.Files.New(ctx, openai.FileNewParams{File: openai.File(strings.NewReader(input.String()), "in.jsonl", "application/jsonl"), Purpose: openai.FilePurposeBatch})
	if err != nil {
		t.Fatal(err)
	}
	b, err := client.Batches.New(ctx, openai.BatchNewParams{
		InputFileID: file.ID, Endpoint: openai.BatchNewParamsEndpointV1ChatCompletions, CompletionWindow: openai.BatchNewParamsCompletionWindow24h,
	})
	for end := time.Now().Add(time.Minute); err == nil && b.Status != openai.BatchStatusCompleted; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s", b.RawJSON())
		}
		b, err = client.Batches.Get(ctx, b.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	if b.RequestCounts.Completed != 10 || b.RequestCounts.Failed != 0 || b.Usage.OutputTokens != 30 {
		t.Errorf("%s", b.RawJSON())
	}
	content, err := client.Files.Content(ctx, b.OutputFileID)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Body.Close()
	output, err := io.ReadAll(content.Body)
	if n := strings.Count(string(output), `"custom_id":"q`); err != nil || n != 10 {
		t.Errorf("%d results, %v", n, err)
	}
	if _, err := client.Files.Delete(ctx, file.ID); err != nil {
		t.Error(err)
	}
}
