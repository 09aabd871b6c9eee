package xva

import (
	"archive/tar"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
)

const (
	maxDescriptor = 16 << 20 // bytes of ova.xml
	maxDepth      = 64       // of values in values
	maxDisk       = maxChunks * chunkSize
)

// Open returns the disk in an XVA as a map, in which chunks that are not there are
// holes. Of several disks it is the one that the machine boots from. The checksums
// of the chunks are not compared.
func Open(src extent.Source) (*extent.Map, error) {
	section := extent.Reader(src)
	r := tar.NewReader(section)
	h, err := r.Next()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if h.Name != descriptorName || h.Size > maxDescriptor {
		return nil, fmt.Errorf("%w: begins with %q of %d bytes, want %q", ErrCorrupt, h.Name, h.Size, descriptorName)
	}
	ref, size, err := bootDisk(io.LimitReader(r, maxDescriptor))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, descriptorName, err)
	}
	m := extent.New(size)
	first := int64(-1) // size of the first chunk, and of all others but the last
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		number, ok := strings.CutPrefix(h.Name, ref+"/")
		if !ok || strings.HasSuffix(number, checksumSuffix) || strings.HasSuffix(number, xxhashSuffix) {
			continue
		}
		if h.Size == 0 { // written so that a connection is not idle
			continue
		}
		at, err := section.Seek(0, io.SeekCurrent) // the reader of tar has read no more than the header
		if err != nil {
			return nil, err
		}
		if first < 0 {
			first = h.Size
		}
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || h.Size > first || int64(n) > size/first {
			return nil, fmt.Errorf("%w: chunk %q of %d bytes, the first has %d and the disk %d", ErrCorrupt, h.Name, h.Size, first, size)
		}
		s, err := extent.Section(src, at, h.Size)
		if err == nil {
			err = m.Put(int64(n)*first, s)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: chunk %q: %w", ErrCorrupt, h.Name, err)
		}
	}
	if first < 0 {
		return nil, fmt.Errorf("%w: the first chunk of %s is not in it", ErrCorrupt, ref)
	}
	return m, nil
}

// bootDisk returns the reference and the size in bytes of the disk that a machine
// boots from.
func bootDisk(r io.Reader) (ref string, size int64, err error) {
	root, err := readValue(xml.NewDecoder(r))
	if err != nil {
		return "", 0, err
	}
	sizes := map[string]string{}
	best := ""
	for _, o := range root.get("objects").array {
		fields := o.get("snapshot")
		switch o.get("class").text {
		case "VDI":
			sizes[o.get("id").text] = fields.get("virtual_size").text
		case "VBD":
			// The first that is bootable, or else the first.
			if fields.get("type").text == "Disk" && (ref == "" || best == "" && fields.get("bootable").text == "1") {
				ref = fields.get("VDI").text
				if fields.get("bootable").text == "1" {
					best = ref
				}
			}
		}
	}
	if ref == "" {
		return "", 0, errors.New("the machine has no disk")
	}
	size, err = strconv.ParseInt(sizes[ref], 10, 64)
	if err != nil || size <= 0 || size > maxDisk {
		return "", 0, fmt.Errorf("disk %s has a size of %q bytes", ref, sizes[ref])
	}
	return ref, size, nil
}

// value is a value of XML-RPC: a struct, an array, or text.
type value struct {
	fields map[string]*value
	array  []*value
	text   string
}

// get returns a field of a struct; what is not there is empty.
func (v *value) get(name string) *value {
	if f := v.fields[name]; f != nil {
		return f
	}
	return &value{}
}

// readValue reads the first value there is.
func readValue(d *xml.Decoder) (*value, error) {
	for {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		if start, ok := t.(xml.StartElement); ok {
			if start.Name.Local != "value" {
				return nil, fmt.Errorf("begins with <%s>, want <value>", start.Name.Local)
			}
			return parseValue(d, 0)
		}
	}
}

// parseValue reads up to the end of a value that has begun.
func parseValue(d *xml.Decoder, depth int) (*value, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("values in values, more than %d", maxDepth)
	}
	v := &value{}
	var name strings.Builder
	inName, open := false, 1
	for open > 0 {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			if t.Name.Local == "value" {
				inner, err := parseValue(d, depth+1)
				if err != nil {
					return nil, err
				}
				if name.Len() > 0 {
					if v.fields == nil {
						v.fields = map[string]*value{}
					}
					v.fields[name.String()] = inner
					name.Reset()
				} else {
					v.array = append(v.array, inner)
				}
				continue
			}
			inName = t.Name.Local == "name"
			if open++; open > maxDepth {
				return nil, fmt.Errorf("elements in elements, more than %d", maxDepth)
			}
		case xml.EndElement:
			open--
			inName = false
		case xml.CharData:
			if inName {
				name.Write(t)
			} else if v.fields == nil && v.array == nil {
				v.text += string(t)
			}
		}
	}
	v.text = strings.TrimSpace(v.text)
	return v, nil
}
