package work

import "encoding/binary"

const (
	// PageBytes is the unit in which content carries its version: a block
	// that was being overwritten may hold pages of both versions.
	PageBytes = 4096
	// BlockBytes is what one write call writes.
	BlockBytes = 32 << 10
)

// fillPage writes the content that page number page of a job's file has in a
// version. No two pages or versions have the same content.
func fillPage(p []byte, seed int64, job, page int, version uint32) {
	x := uint64(seed)*0x9e3779b97f4a7c15 ^ uint64(job)<<48 ^ uint64(page)<<20 ^ uint64(version)
	for i := 0; i < len(p); i += 8 {
		x += 0x9e3779b97f4a7c15
		z := x
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(p[i:], z^z>>31)
	}
	binary.LittleEndian.PutUint32(p, version)
}

func fillBlock(b []byte, seed int64, job, block int, version uint32) {
	for i := 0; i < len(b); i += PageBytes {
		fillPage(b[i:i+PageBytes], seed, job, (block*BlockBytes+i)/PageBytes, version)
	}
}

// pageVersion returns the version that p says it is.
func pageVersion(p []byte) uint32 { return binary.LittleEndian.Uint32(p) }
