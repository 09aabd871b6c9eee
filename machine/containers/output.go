//go:build linux

package containers

import (
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// An output is what a container prints: a pipe with a name, into which its shim
// writes.
type output struct {
	path string
	file *os.File
	done chan struct{}
}

// openOutput makes the pipe and begins to copy what comes to w.
func openOutput(path string, w io.Writer) (*output, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	// For writing too: a pipe that nobody has open for that would be at its end.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	o := &output{path, f, make(chan struct{})}
	go func() {
		defer close(o.done)
		// It ends with the deadline. What cannot be written is lost: that is no
		// reason to stop the container, which would wait for a full pipe.
		if _, err := io.Copy(w, f); err != nil {
			_, _ = io.Copy(io.Discard, f)
		}
	}()
	return o, nil
}

// drain copies what is still in the pipe, into which nobody writes any more.
func (o *output) drain() {
	_ = o.file.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	<-o.done
	_ = o.file.Close()
}
