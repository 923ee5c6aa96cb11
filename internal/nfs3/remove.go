package nfs3

// RemoveArgs are the arguments of REMOVE (RFC 1813 §3.3.12).
type RemoveArgs = DirOpArgs

// RemoveResult are the results of REMOVE: data of the directory.
type RemoveResult = WCCResult
