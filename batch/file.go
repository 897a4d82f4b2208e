package batch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

// Purposes of files.
const (
	purposeInput  = "batch"
	purposeOutput = "batch_output"
	purposeHidden = "hidden" // of Anthropic's batches, which have no files
)

// file is the record of a file.
type file struct {
	ID      string    `json:"id"`
	Tenant  string    `json:"tenant"`
	Name    string    `json:"name"`
	Purpose string    `json:"purpose"`
	Size    int64     `json:"size"`
	Pieces  int       `json:"pieces"`
	Lines   int       `json:"lines"` // that are not blank
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
}

// fileObject is a file in OpenAI's API.
type fileObject struct {
	ID        string `json:"id"`
	Object    string `json:"object"`
	Bytes     int64  `json:"bytes"`
	CreatedAt int64  `json:"created_at"`
	ExpiresAt int64  `json:"expires_at"`
	Filename  string `json:"filename"`
	Purpose   string `json:"purpose"`
	Status    string `json:"status"`
}

func (f *file) object() fileObject {
	return fileObject{f.ID, "file", f.Size, f.Created.Unix(), f.Expires.Unix(), f.Name, f.Purpose, "processed"}
}

// newID returns an id that nobody can guess: 48 bits of the time, by which ids are in order, and 130 random ones.
func newID(prefix string) string {
	return fmt.Sprintf("%s%012x%s", prefix, time.Now().UnixMilli(), strings.ToLower(rand.Text()))
}

// createdAt is the time in an id; zero if it has none.
func createdAt(id string) time.Time {
	_, id, _ = strings.Cut(strings.ReplaceAll(id, "_", "-"), "-")
	if len(id) < 12 {
		return time.Time{}
	}
	ms, err := strconv.ParseInt(id[:12], 16, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// recordMargin is how much longer than a file its record is kept, so that a gateway can remove what is left of the content.
const recordMargin = 24 * time.Hour

func (s *store) putFile(ctx context.Context, f *file) error {
	return again(ctx, func() error {
		_, err := s.put(ctx, subjects.BatchRecord("file", f.Tenant, f.ID), f, 0, time.Until(f.Expires)+recordMargin)
		if errors.Is(err, errChanged) { // an earlier try has written it
			err = nil
		}
		return err
	})
}

// file returns a tenant's file; errNotFound if there is none, or it has expired.
func (s *store) file(ctx context.Context, tenant, id string) (*file, error) {
	f := new(file)
	if !validID(id) {
		return nil, errNotFound
	}
	if _, err := s.get(ctx, subjects.RecordsStream, subjects.BatchRecord("file", tenant, id), f); err != nil {
		return nil, err
	}
	if !time.Now().Before(f.Expires) {
		return nil, errNotFound
	}
	return f, nil
}

// validID keeps what clients name out of subjects for which it would be too long.
func validID(id string) bool { return len(id) > 0 && len(id) <= 100 }

// filesOf returns the files of a tenant, the oldest first.
func (s *store) filesOf(ctx context.Context, tenant string) ([]*file, error) {
	return s.files(ctx, subjects.BatchRecords("file", tenant))
}

// files returns the files whose records are on a subject, the oldest first.
func (s *store) files(ctx context.Context, subject string) (list []*file, err error) {
	for m, err := range s.scan(ctx, subjects.RecordsStream, subject) {
		if err != nil {
			return nil, err
		}
		f := new(file)
		if err := subjects.Unmarshal(m.data, f); err != nil {
			return nil, fmt.Errorf("read %s: %w", m.subject, err)
		}
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b *file) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// removeFile removes a file: first what is visible of it.
func (s *store) removeFile(ctx context.Context, f *file) error {
	if err := s.remove(ctx, subjects.RecordsStream, subjects.BatchRecord("file", f.Tenant, f.ID)); err != nil {
		return err
	}
	return s.remove(ctx, subjects.FilesStream, subjects.FileContent(f.ID)+".>")
}

// noFile is the error of a file that the tenant does not have.
func noFile(id string) error {
	return api.Errorf(http.StatusNotFound, "not_found", "No such File object: %s", api.Quote(id))
}

// fileOf returns the file that a call names.
func (s *Service) fileOf(r *http.Request, who gateway.Caller) (*file, error) {
	f, err := s.store.file(r.Context(), who.Tenant, r.PathValue("id"))
	if errors.Is(err, errNotFound) || err == nil && f.Purpose == purposeHidden {
		return nil, noFile(r.PathValue("id"))
	}
	return f, err
}

func (s *Service) showFile(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	f, err := s.fileOf(r, who)
	if err != nil {
		return err
	}
	return writeJSON(w, f.object())
}

func (s *Service) deleteFile(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	f, err := s.fileOf(r, who)
	if err != nil {
		return err
	}
	open, err := s.store.openBatches(r.Context(), who.Tenant)
	if err != nil {
		return err
	}
	for _, b := range open {
		if b.Input == f.ID {
			return api.Errorf(http.StatusConflict, "file_in_use", "the file is the input of the batch %s, which has not ended; cancel that first", b.ID)
		}
	}
	if err := s.store.removeFile(r.Context(), f); err != nil {
		return err
	}
	return writeJSON(w, map[string]any{"id": f.ID, "object": "file", "deleted": true})
}

func (s *Service) fileContent(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	f, err := s.fileOf(r, who)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Disposition", `attachment; filename="`+strings.Map(plainInHeader, f.Name)+`"`)
	return s.sendContent(w, r, f, "application/octet-stream")
}

func plainInHeader(c rune) rune {
	if c < ' ' || c > '~' || c == '"' || c == '\\' {
		return '_'
	}
	return c
}

// slowClient is how long a client may take none of a file's bytes, or send none.
const slowClient = 30 * time.Second

// sendContent answers with a file.
func (s *Service) sendContent(w http.ResponseWriter, r *http.Request, f *file, contentType string) error {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.FormatInt(f.Size, 10))
	rc, begun := http.NewResponseController(w), false
	for data, err := range s.store.content(r.Context(), f) {
		if err == nil {
			rc.SetWriteDeadline(time.Now().Add(slowClient))
			begun = true
			_, err = w.Write(data)
		}
		switch {
		case err != nil && begun:
			panic(http.ErrAbortHandler)
		case err != nil:
			w.Header().Del("Content-Length")
			return err
		}
	}
	rc.SetWriteDeadline(time.Time{})
	return nil
}

func (s *Service) listFiles(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	p, err := pageOf(r, 10_000, 10_000)
	if err != nil {
		return err
	}
	all, err := s.store.filesOf(r.Context(), who.Tenant)
	if err != nil {
		return err
	}
	purpose, now := r.URL.Query().Get("purpose"), time.Now()
	all = slices.DeleteFunc(all, func(f *file) bool {
		return f.Purpose == purposeHidden || purpose != "" && f.Purpose != purpose || !now.Before(f.Expires)
	})
	list, more := cut(p, all, func(f *file) string { return f.ID })
	data := make([]fileObject, len(list))
	for i, f := range list {
		data[i] = f.object()
	}
	return writeJSON(w, listOf(data, more, func(f fileObject) string { return f.ID }))
}

// Bounds of how long a file may be kept, by the API.
const (
	leastExpiry   = time.Hour
	mostExpiry    = 30 * 24 * time.Hour
	defaultExpiry = mostExpiry
)

// upload is what a form says of a file.
type upload struct {
	purpose, name   string
	anchor, seconds string
	lines           int
	content         *writer // nil: there is none yet
	id              string
}

func (s *Service) createFile(w http.ResponseWriter, r *http.Request, who gateway.Caller) (err error) {
	form, err := r.MultipartReader()
	if err != nil {
		return api.BadRequest("file", "the body must be multipart/form-data with the fields purpose and file")
	}
	left, err := s.roomFor(r.Context(), who.Tenant, r.ContentLength, s.cfg.MaxFile)
	if err != nil {
		return err
	}
	up, began := &upload{}, time.Now()
	defer func() {
		if err != nil && up.content != nil {
			up.content.discard()
		}
	}()
	for {
		extend(w, began)
		part, err := form.NextPart()
		if err == io.EOF {
			break
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return brokenOff(err)
		}
		if err != nil {
			return api.BadRequest("", "the form cannot be read: %v", err)
		}
		if err := s.readField(w, r, up, part, left, began); err != nil {
			return err
		}
	}
	http.NewResponseController(w).SetReadDeadline(time.Time{})
	keep, err := up.check()
	if err != nil {
		return err
	}
	f, err := s.finishFile(r.Context(), who.Tenant, up.content, file{ID: up.id, Name: up.name, Purpose: up.purpose, Lines: up.lines}, keep)
	if err != nil {
		return err
	}
	return writeJSON(w, f.object())
}

// extend gives the client of an upload more time for its next bytes.
func extend(w http.ResponseWriter, began time.Time) {
	until := time.Now().Add(slowClient)
	if last := began.Add(longestUpload); last.Before(until) {
		until = last
	}
	http.NewResponseController(w).SetReadDeadline(until)
}

// finishFile makes a file of a content that is complete.
func (s *Service) finishFile(ctx context.Context, tenant string, content *writer, f file, keep time.Duration) (*file, error) {
	if err := content.close(); err != nil {
		return nil, err
	}
	f.Tenant, f.Created = tenant, time.Now()
	f.Size, f.Pieces, f.Expires = content.size, content.pieces, f.Created.Add(keep)
	return &f, s.store.putFile(ctx, &f)
}

// readField reads one field of the form.
func (s *Service) readField(w http.ResponseWriter, r *http.Request, up *upload, part *multipart.Part, left int64, began time.Time) error {
	field := func(to *string) error {
		b, err := io.ReadAll(io.LimitReader(part, 256))
		if *to = string(b); err != nil {
			return brokenOff(err)
		}
		return nil
	}
	switch part.FormName() {
	case "purpose":
		if err := field(&up.purpose); err != nil {
			return err
		}
		return checkPurpose(up.purpose)
	case "expires_after[anchor]":
		return field(&up.anchor)
	case "expires_after[seconds]":
		return field(&up.seconds)
	case "file":
	default:
		return nil
	}
	if up.content != nil {
		return api.BadRequest("file", "the form has more than one file")
	}
	keep, err := expiry(up.anchor, up.seconds)
	if err != nil {
		return err
	}
	if up.name = strings.ToValidUTF8(part.FileName(), "\ufffd"); len(up.name) > longestString {
		return api.BadRequest("file", "the name of the file is longer than %d bytes", longestString)
	}
	up.id = newID("file-")
	up.content = s.store.newWriter(r.Context(), up.id, keep, s.room)
	in := &lineCounter{r: part, extend: func() { extend(w, began) }}
	n, err := io.CopyBuffer(struct{ io.Writer }{up.content}, io.LimitReader(in, min(left, s.cfg.MaxFile)+1), make([]byte, 64<<10))
	up.lines = in.count()
	switch {
	case n > s.cfg.MaxFile:
		return tooLarge(s.cfg.MaxFile)
	case n > left:
		return tenantFull(s.cfg.TenantDisk)
	case err != nil && in.err != nil && !errors.Is(err, errFull):
		return brokenOff(in.err)
	}
	return err
}

// brokenOff is the error of an upload that cannot be read any more. net/http has ended the call's context then, even if the client
// is there and only took too long.
func brokenOff(err error) error {
	return api.Errorf(http.StatusRequestTimeout, "upload_broken_off", "the file did not come as a whole: %v", err)
}

func checkPurpose(purpose string) error {
	if purpose != purposeInput {
		return api.BadRequest("purpose", "purpose %s: must be %q, the only one that is served here", api.Quote(purpose), purposeInput)
	}
	return nil
}

// check checks a form that was read to its end. It returns how long the file is kept.
func (up *upload) check() (time.Duration, error) {
	if up.purpose == "" {
		return 0, api.BadRequest("purpose", "missing field: purpose")
	}
	if up.content == nil {
		return 0, api.BadRequest("file", "missing field: file")
	}
	return expiry(up.anchor, up.seconds)
}

// expiry is how long a file is kept, by the fields of a form.
func expiry(anchor, seconds string) (time.Duration, error) {
	if anchor == "" && seconds == "" {
		return defaultExpiry, nil
	}
	n, err := strconv.Atoi(seconds)
	if err != nil && seconds != "" || anchor != "" && anchor != "created_at" {
		return 0, api.BadRequest("expires_after", `expires_after must have the anchor "created_at" and a number of seconds`)
	}
	if seconds == "" { // it may follow in the form
		return defaultExpiry, nil
	}
	return checkExpiry(n)
}

func checkExpiry(seconds int) (time.Duration, error) {
	if seconds < int(leastExpiry.Seconds()) || seconds > int(mostExpiry.Seconds()) {
		return 0, api.BadRequest("expires_after.seconds", "expires_after.seconds %d: must be from %d to %d", seconds, int(leastExpiry.Seconds()), int(mostExpiry.Seconds()))
	}
	return time.Duration(seconds) * time.Second, nil
}

// lineCounter counts the lines that are not blank.
type lineCounter struct {
	r      io.Reader
	extend func() // called before each read
	err    error  // of reading

	lines int
	begun bool // the present line has something
}

func (c *lineCounter) Read(p []byte) (n int, err error) {
	c.extend()
	n, err = c.r.Read(p)
	if err != nil && err != io.EOF {
		c.err = err
	}
	for _, b := range p[:n] {
		switch {
		case b == '\n':
			if c.begun {
				c.lines++
			}
			c.begun = false
		case !c.begun && b != ' ' && b != '\t' && b != '\r':
			c.begun = true
		}
	}
	return n, err
}

func (c *lineCounter) count() int {
	if c.begun {
		return c.lines + 1
	}
	return c.lines
}

// full is the error of what cannot be stored. SDKs do not try it again.
func full(code, format string, args ...any) error {
	e := api.Errorf(http.StatusInsufficientStorage, code, format, args...)
	e.NoRetry = true
	return e
}

func tenantFull(most int64) error {
	return full("tenant_storage_full", "your files take the %d bytes that they may, with the results of message batches; delete some", most)
}

func tooLarge(most int64) error {
	return api.Errorf(http.StatusRequestEntityTooLarge, "file_too_large", "the requests are larger than %d bytes, which is the most for a batch here", most)
}

// roomFor returns how many bytes a tenant may still store, or why it can store no file of a size; -1 is an unknown one. most is the
// most of one file.
func (s *Service) roomFor(ctx context.Context, tenant string, size, most int64) (left int64, err error) {
	all, err := s.store.filesOf(ctx, tenant)
	if err != nil {
		return 0, err
	}
	left = s.cfg.TenantDisk
	for _, f := range all {
		left -= f.Size
	}
	switch {
	case len(all) >= s.cfg.TenantFiles:
		return 0, full("too_many_files", "you have %d files, with those of the results of message batches, which is the most; delete some, or batches that have ended", len(all))
	case left <= 0 || size > left+formMargin:
		return 0, tenantFull(s.cfg.TenantDisk)
	case size > most+formMargin:
		return 0, tooLarge(most)
	}
	return left, s.roomOf(ctx, max(size, 0))
}

// formMargin is what a form has besides the file.
const formMargin = 64 << 10

// room says whether there is room for more files and results.
func (s *Service) room(ctx context.Context) error { return s.roomOf(ctx, 0) }

func (s *Service) roomOf(ctx context.Context, size int64) error {
	used, err := s.store.used(ctx)
	if err != nil {
		return err
	}
	if used+size > s.cfg.Disk {
		return full("storage_full", "the storage of files and batches is full: %d of %d bytes are used", used, s.cfg.Disk)
	}
	return nil
}
