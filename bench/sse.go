package bench

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// maxEvent bounds one server-sent event. A Responses stream repeats the whole answer in its last one.
const maxEvent = 16 << 20

var errEventTooLong = errors.New("server-sent event is longer than 16 MiB")

// events reads server-sent events. Name and data are valid until the next call of next.
type events struct {
	reader     *bufio.Reader
	name, data []byte
	hasData    bool
	err        error
}

func newEvents() *events { return &events{reader: bufio.NewReaderSize(nil, 16<<10)} }

func (e *events) reset(r io.Reader) {
	e.reader.Reset(r)
	e.err = nil
}

// next advances to the next event that has data and reports whether there is one. Comments are skipped. At the end of
// the stream an event counts even without its blank line: some servers end with a bare "data: [DONE]".
func (e *events) next() bool {
	e.name, e.data, e.hasData = e.name[:0], e.data[:0], false
	for e.err == nil {
		if e.readLine() && e.hasData {
			return true
		}
	}
	return errors.Is(e.err, io.EOF) && e.hasData
}

// readLine reads one line and reports whether it was the blank line that ends an event. Of a line that is longer than
// the buffer, only data is assembled.
func (e *events) readLine() (blank bool) {
	line, err := e.reader.ReadSlice('\n')
	if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
		e.err = err
	}
	more := errors.Is(err, bufio.ErrBufferFull)
	if !more {
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(line) == 0 {
			return e.err == nil
		}
	}
	isData := false
	if value, ok := bytes.CutPrefix(line, []byte("data:")); ok {
		isData = true
		if e.hasData {
			e.data = append(e.data, '\n')
		}
		e.hasData = true
		e.data = append(e.data, bytes.TrimPrefix(value, []byte(" "))...)
	} else if value, ok := bytes.CutPrefix(line, []byte("event:")); ok {
		e.name = append(e.name[:0], bytes.TrimPrefix(value, []byte(" "))...)
	}
	if more {
		e.readRest(isData)
	}
	return false
}

// readRest reads the rest of a line that did not fit the buffer.
func (e *events) readRest(isData bool) {
	for {
		part, err := e.reader.ReadSlice('\n')
		if isData {
			e.data = append(e.data, part...)
		}
		if len(e.data) > maxEvent {
			e.err = errEventTooLong
			return
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		e.data = bytes.TrimSuffix(bytes.TrimSuffix(e.data, []byte("\n")), []byte("\r"))
		e.err = err
		return
	}
}
