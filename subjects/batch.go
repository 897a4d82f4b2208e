package subjects

import (
	"context"
	"strconv"

	"github.com/nats-io/nats.go/jetstream"
)

// The streams of files and batches.
const (
	FilesStream   = "PULLEY_FILES"         // contents of files
	RecordsStream = "PULLEY_BATCH"         // records of files and batches
	ResultsStream = "PULLEY_BATCH_RESULTS" // results of batches that have not ended
)

// FilePiece is the subject of the n-th piece of a file's content.
func FilePiece(id string, n int) string { return FileContent(id) + "." + strconv.Itoa(n) }

// FileContent is the common prefix of the subjects of a file's pieces.
func FileContent(id string) string { return "pulley.file." + Token(id) }

// BatchRecord is the subject of a record: kind is file or batch, tenant and id are any names.
func BatchRecord(kind, tenant, id string) string {
	return "pulley.batch." + kind + "." + Token(tenant) + "." + Token(id)
}

// BatchRecords are the subjects of a tenant's records of a kind.
func BatchRecords(kind, tenant string) string {
	return "pulley.batch." + kind + "." + Token(tenant) + ".*"
}

// OpenBatch is the subject of the record that a batch has not ended.
func OpenBatch(id string) string { return "pulley.batch.open." + Token(id) }

// Subjects of all tenants.
const (
	FirstPieces = "pulley.file.*.0" // the first piece of each file
	FileRecords = "pulley.batch.file.*.*"
	OpenBatches = "pulley.batch.open.*"
)

// BatchSettings is the subject of the gateways' settings, for operators.
const BatchSettings = "pulley.batch.settings"

// BatchResults is the subject of the results of a batch.
func BatchResults(id string) string { return "pulley.result." + Token(id) }

// EnsureBatchStreams creates the streams of files and batches where they are missing. Their messages go by a TTL of each.
func EnsureBatchStreams(ctx context.Context, js jetstream.JetStream, replicas int) error {
	for _, cfg := range []jetstream.StreamConfig{
		{Name: FilesStream, Description: "Pulley: contents of files", Subjects: []string{"pulley.file.>"}, MaxMsgsPerSubject: 1},
		{Name: RecordsStream, Description: "Pulley: records of files and batches", Subjects: []string{"pulley.batch.>"}, MaxMsgsPerSubject: 1},
		{Name: ResultsStream, Description: "Pulley: results of batches that have not ended", Subjects: []string{"pulley.result.>"}},
	} {
		cfg.Storage, cfg.Replicas, cfg.AllowMsgTTL, cfg.AllowDirect = jetstream.FileStorage, replicas, true, true
		if err := ensureStream(ctx, js, cfg); err != nil {
			return err
		}
	}
	return nil
}
